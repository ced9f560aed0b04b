"""Materialised answers through a real processor: right whatever was found, and told as what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from smile.errors import FailedPrecondition
from smile.model.backbone import Backbone
from smile.model.toy import write_toy_backbone
from smile.resources import Classification, Embedding, Exactness, FanoutAnswer, Prediction
from smile.v1 import resources_pb2
from tests.contract.materialized_world import Encoder
from tests.contract.processor_world import World, processor_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

MATERIALIZED = resources_pb2.EXACTNESS_MATERIALIZED
EXACT = resources_pb2.EXACTNESS_EXACT
SEEN = ("the movie was good and the story was sad", "a slow train and a cold river")
UNSEEN = ("a cold movie and the slow story", "the river was sad and the train was good")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def encoder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    place = tmp_path_factory.mktemp("skip") / "encoder.safetensors"
    return Encoder.make(Backbone.load(folder, "toy"), place)


@pytest.fixture(scope="module")
def table(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder.table(tmp_path_factory.mktemp("tables") / "general", SEEN)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(folder: Path, encoder: Encoder, table: Path) -> AsyncIterator[World]:
    settings: dict[str, Any] = {"skip": f"toy={encoder.path}", "tables": f"toy={table}"}
    async with processor_world(folder, **settings) as world:
        await world.ready()
        yield world


def values_of(world: World, version: str, prediction: Prediction) -> list[float]:
    """As the reference orders them."""
    if isinstance(prediction.result, Embedding):
        return list(prediction.result.values)
    assert isinstance(prediction.result, Classification)
    labels = world.modules[version].spec.head.labels
    score_of = {row.label: row.score for row in prediction.result.scores}
    return [score_of[label] for label in labels]


def check(world: World, encoder: Encoder, version: str, text: str, prediction: Prediction) -> None:
    expected = encoder.expected(world.modules[version], text)
    found = values_of(world, version, prediction)
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("pet", "head"), [("pfeiffer", "topic"), ("bitfit", "near")])
async def test_answers_are_the_references(
    world: World, encoder: Encoder, pet: str, head: str
) -> None:
    version = world.add("acme", f"same-{pet}", pet=pet, head=head)
    texts = [*SEEN, *UNSEEN]
    name = f"tenants/acme/vplms/same-{pet}"
    result = await world.infer("acme", name, texts, exactness=MATERIALIZED)
    assert result.exactness is Exactness.MATERIALIZED
    assert result.materialization is not None
    assert result.materialization.encoder_digest == encoder.stand_in.digest
    assert result.materialization.ngrams == sum(p.token_count for p in result.predictions)
    seen = sum(p.token_count for p in result.predictions[:2])
    assert seen <= result.materialization.found < result.materialization.ngrams
    for text, prediction in zip(texts, result.predictions, strict=True):
        check(world, encoder, version.name, text, prediction)


async def test_exact_and_materialised_requests_do_not_touch_each_other(
    world: World, encoder: Encoder
) -> None:
    versions = [world.add("acme", f"mixed-{n}", pet="pfeiffer", seed=n) for n in range(4)]
    asked = [(n % 4, (n // 4) % 2 == 0, (*SEEN, *UNSEEN)[n % 3]) for n in range(48)]

    async def ask(vplm: int, exact: bool, text: str) -> None:
        name = f"tenants/acme/vplms/mixed-{vplm}"
        wanted = EXACT if exact else MATERIALIZED
        result = await world.infer("acme", name, [text], exactness=wanted)
        version = versions[vplm].name
        assert result.version == version
        if exact:
            assert result.exactness is Exactness.EXACT
            expected = world.expected(version, text).reshape(-1)
            found = values_of(world, version, result.predictions[0])
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
        else:
            check(world, encoder, version, text, result.predictions[0])

    await asyncio.gather(*(ask(*one) for one in asked))


async def test_one_text_of_many_vplms_is_looked_up_once(world: World, encoder: Encoder) -> None:
    versions = [world.add("acme", f"fan-{n}", pet="pfeiffer", seed=n) for n in range(3)]
    world.add("acme", "fan-low", pet="lora")
    names = [f"tenants/acme/vplms/fan-{n}" for n in (0, 1, 2, "low")]
    result = await world.infer_fanout("acme", SEEN[0], names, exactness=MATERIALIZED)
    *answers, low = result.entries
    for version, answer in zip(versions, answers, strict=True):
        assert isinstance(answer, FanoutAnswer)
        assert answer.materialization is not None
        assert answer.materialization.found == answer.materialization.ngrams
        check(world, encoder, version.name, SEEN[0], answer.prediction)
    assert isinstance(low, FailedPrecondition) and low.reason == "MODULE_BELOW_BOUNDARY"


async def test_a_module_below_the_boundary_is_refused_and_answers_exactly(world: World) -> None:
    version = world.add("acme", "low", pet="houlsby")
    name = "tenants/acme/vplms/low"
    with pytest.raises(FailedPrecondition) as caught:
        await world.infer("acme", name, [SEEN[0]], exactness=MATERIALIZED)
    assert caught.value.reason == "MODULE_BELOW_BOUNDARY"
    result = await world.infer("acme", name, [SEEN[0]])
    assert (result.version, result.exactness) == (version.name, Exactness.EXACT)


async def test_what_is_rented_says_how_where_a_request_does_not(world: World) -> None:
    world.add("acme", "rented", pet="pfeiffer")
    world.add("acme", "rented-low", pet="houlsby")
    async with world.client("acme") as client:
        await client.rent("rented", exactness=Exactness.MATERIALIZED)
        assert (await client.infer("rented", SEEN[0])).exactness is Exactness.MATERIALIZED
        exact = await client.infer("rented", SEEN[0], exactness="exact")
        assert (exact.exactness, exact.materialization) == (Exactness.EXACT, None)
        with pytest.raises(FailedPrecondition) as caught:
            await client.rent("rented-low", exactness=Exactness.MATERIALIZED)
        assert caught.value.reason == "MODULE_BELOW_BOUNDARY"


async def test_without_a_local_encoder_exactly_or_not_at_all(folder: Path) -> None:
    async with processor_world(folder) as world:
        await world.ready()
        world.add("acme", "plain")
        name = "tenants/acme/vplms/plain"
        with pytest.raises(FailedPrecondition) as caught:
            await world.infer("acme", name, [SEEN[0]], exactness=MATERIALIZED)
        assert caught.value.reason == "NOT_MATERIALIZED"
        assert (await world.infer("acme", name, [SEEN[0]])).exactness is Exactness.EXACT


async def test_a_table_that_cannot_be_used_costs_time_alone(
    folder: Path, encoder: Encoder, tmp_path: Path
) -> None:
    corrupt = encoder.table(tmp_path / "corrupt", SEEN)
    index = corrupt / "index.bin"
    data = bytearray(index.read_bytes())
    data[3] ^= 1
    index.write_bytes(data)
    other = Encoder.make(encoder.backbone, tmp_path / "other.safetensors", seed=6)
    foreign = other.table(tmp_path / "foreign", SEEN)
    for place in (corrupt, foreign, tmp_path / "absent"):
        settings: dict[str, Any] = {"skip": f"toy={encoder.path}", "tables": f"toy={place}"}
        async with processor_world(folder, **settings) as world:
            await world.ready()
            version = world.add("acme", "poor")
            name = "tenants/acme/vplms/poor"
            result = await world.infer("acme", name, [SEEN[0]], exactness=MATERIALIZED)
            assert result.materialization is not None and result.materialization.found == 0
            check(world, encoder, version.name, SEEN[0], result.predictions[0])
            assert (await world.infer("acme", name, [SEEN[0]])).exactness is Exactness.EXACT


async def test_stats_tell_what_was_found(world: World) -> None:
    world.add("acme", "counted")
    before = world.stats
    assert before.ngram_rows > 0 and before.ngram_rows_bytes > 0
    name = "tenants/acme/vplms/counted"
    seen = await world.infer("acme", name, [SEEN[0]], exactness=MATERIALIZED)
    between = world.stats
    tokens = seen.predictions[0].token_count
    assert between.ngrams_total - before.ngrams_total == tokens
    assert between.ngrams_found_total - before.ngrams_found_total == tokens
    assert between.ngram_rows_computed_total == before.ngram_rows_computed_total
    await world.infer("acme", name, [UNSEEN[0], UNSEEN[0]], exactness=MATERIALIZED)
    after = world.stats
    assert after.ngram_rows_computed_total > between.ngram_rows_computed_total
    await world.infer("acme", name, [SEEN[0]])
    assert world.stats.ngrams_total == after.ngrams_total


async def test_answers_hold_while_tables_are_swapped_and_traffic_is_learned(
    folder: Path, encoder: Encoder, table: Path, tmp_path: Path
) -> None:
    other = encoder.table(tmp_path / "other", UNSEEN[:1])
    place, beside = tmp_path / "current", tmp_path / "next"
    place.symlink_to(table)
    settings: dict[str, Any] = {
        "skip": f"toy={encoder.path}",
        "tables": f"toy={place}",
        "learn_s": 0.05,
        "learn_tenants_min": 2,
        "learn_count_min": 2.0,
    }
    async with processor_world(folder, **settings) as world:
        await world.ready()
        tenants = tuple(f"tenant-{number}" for number in range(6))  # not all in one group
        versions = {tenant: world.add(tenant, "swapped").name for tenant in tenants}

        async def ask(tenant: str, text: str) -> int:
            name = f"tenants/{tenant}/vplms/swapped"
            result = await world.infer(tenant, name, [text], exactness=MATERIALIZED)
            check(world, encoder, versions[tenant], text, result.predictions[0])
            assert result.materialization is not None
            return result.materialization.ngrams - result.materialization.found

        for number in range(6):
            beside.symlink_to(other if number % 2 == 0 else table)
            beside.replace(place)
            await asyncio.gather(*(ask(t, text) for t in tenants for text in (*SEEN, *UNSEEN)))
        async with asyncio.timeout(60):
            while sum([await ask(tenants[0], text) for text in (*SEEN, *UNSEEN)]):
                await asyncio.gather(*(ask(t, text) for t in tenants for text in (*SEEN, *UNSEEN)))
        assert world.stats.ngrams_found_total
