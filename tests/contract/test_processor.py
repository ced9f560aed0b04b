"""`ProcessorService` over real connections: answers, versions, tenants."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from pydantic import SecretStr

from services.processor.config import ProcessorSettings
from services.processor.serving import BACKBONES_CHECK, Processor
from smile import errors
from smile.client.version_reader import VersionReader
from smile.model import weights
from smile.model.initial import initial_tensors
from smile.model.toy import write_toy_backbone
from smile.resources import (
    Canary,
    Classification,
    Embedding,
    InferResult,
    Prediction,
    TokenClassification,
    VersionOrigin,
)
from smile.rpc.channel import build_channel
from smile.rpc.health import Readiness
from smile.rpc.keys import KeyKind, new_key
from tests.contract.processor_world import (
    HEADS,
    PETS,
    World,
    module_spec,
    processor_world,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = [
    "the star of the team",
    "money",
    "a new film about war, and a long one at that: it has not one good song in it",
    "Paris and London are far from home.",
]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(backbone: Path) -> AsyncIterator[World]:
    async with processor_world(backbone) as world:
        yield world


def check(world: World, result: InferResult, texts: list[str]) -> None:
    """Every prediction is what the reference of the answering version says."""
    assert len(result.predictions) == len(texts)
    for text, prediction in zip(texts, result.predictions, strict=True):
        check_one(world, result.version, text, prediction)


def check_one(world: World, version: str, text: str, prediction: Prediction) -> None:
    expected = world.expected(version, text)
    labels = world.modules[version].spec.head.labels
    match prediction.result:
        case Classification(label, score, scores):
            told = {row.label: row.score for row in scores}
            found = np.array([told[name] for name in labels])
            np.testing.assert_allclose(found, expected[0], atol=1e-5)
            assert (label, score) == (scores[0].label, scores[0].score)
            assert label == labels[int(expected[0].argmax())]
        case Embedding(values):
            np.testing.assert_allclose(np.array(values), expected[0], atol=1e-5)
            assert np.linalg.norm(values) == pytest.approx(1.0, abs=1e-5)
        case TokenClassification(tokens):
            assert [token.word for token in tokens] == [
                text[token.start : token.end] for token in tokens
            ]
            check_words(world, version, text, tokens)


def check_words(world: World, version: str, text: str, tokens: tuple[object, ...]) -> None:
    expected = world.expected(version, text)
    labels = world.modules[version].spec.head.labels
    (encoded,) = world.backbone.tokenizer.encode([text], truncate=True)
    firsts = [
        place
        for place, word in enumerate(encoded.places.words)
        if word is not None and encoded.places.words.index(word) == place
    ]
    assert len(firsts) == len(tokens)
    for place, token in zip(firsts, tokens, strict=True):
        assert token.label == labels[int(expected[place].argmax())]  # type: ignore[attr-defined]
        assert token.score == pytest.approx(float(expected[place].max()), abs=1e-5)  # type: ignore[attr-defined]


async def test_answers_of_every_kind_and_task_equal_the_reference(world: World) -> None:
    for pet in PETS:
        for head in HEADS:
            version = world.add("acme", f"{pet}-{head}", pet=pet, head=head, seed=len(pet + head))
            result = await world.infer("acme", f"tenants/acme/vplms/{pet}-{head}", TEXTS)
            assert (result.version, result.digest) == (version.name, version.digest)
            assert result.origin is VersionOrigin.TRAINING
            check(world, result, TEXTS)


async def test_tenants_and_kinds_at_once_get_their_own_answers(world: World) -> None:
    asked = []
    for number in range(24):
        tenant, pet = f"tenant-{number % 5}", list(PETS)[number % len(PETS)]
        head = list(HEADS)[number % len(HEADS)]
        world.add(tenant, f"mix-{number}", pet=pet, head=head, seed=number)
        texts = [TEXTS[(number + shift) % len(TEXTS)] for shift in range(1 + number % 3)]
        asked.append((tenant, f"tenants/-/vplms/mix-{number}", texts))
    before = world.stats
    results = await asyncio.gather(*(world.infer(*one) for one in asked * 2))
    for (tenant, name, texts), result in zip(asked * 2, results, strict=True):
        assert result.version.startswith(name.replace("/-/", f"/{tenant}/"))
        check(world, result, texts)
    after = world.stats
    assert after.module_loads_total - before.module_loads_total == 24
    assert max(result.timings.batch_vplms for result in results) > 1, "batches mix vPLMs"


async def test_a_long_request_keeps_its_order(world: World) -> None:
    version = world.add("acme", "long", head="near", seed=9)
    texts = [f"{TEXTS[index % 4]} {index}" for index in range(700)]
    result = await world.infer("acme", "tenants/acme/vplms/long", texts)
    assert len(result.predictions) == 700
    for index in range(0, 700, 37):
        check_one(world, version.name, texts[index], result.predictions[index])


async def test_top_k_and_timings(world: World) -> None:
    world.add("acme", "ranked", seed=3)
    result = await world.infer("acme", "tenants/acme/vplms/ranked", TEXTS[:2], top_k=2)
    answer = result.predictions[0].result
    assert isinstance(answer, Classification)
    assert len(answer.scores) == 2
    assert answer.scores[0].score >= answer.scores[1].score
    timings = result.timings
    assert timings.load_s > 0, "the module was not there"
    assert 0 < timings.compute_s <= timings.total_s
    assert timings.load_s <= timings.queue_s <= timings.total_s
    again = await world.infer("acme", "tenants/acme/vplms/ranked", TEXTS[:2])
    assert again.timings.load_s == 0
    assert again.timings.batch_texts >= 2


async def test_initial_weights_answer_and_say_so(world: World) -> None:
    spec = module_spec(world.backbone)
    data = weights.encode(initial_tensors(spec, world.backbone.shape, seed=4), spec)
    world.storage.put("tenants/acme/vplms/raw", spec, data, origin=VersionOrigin.INITIAL)
    result = await world.infer("acme", "tenants/acme/vplms/raw", TEXTS[:1])
    assert result.origin is VersionOrigin.INITIAL


async def test_a_moved_alias_is_followed_within_its_time(world: World) -> None:
    name = "tenants/acme/vplms/moving"
    first = world.add("acme", "moving", seed=1)
    assert (await world.infer("acme", name, TEXTS[:1])).version == first.name
    second = world.add("acme", "moving", seed=2)
    await asyncio.sleep(0.35)
    result = await world.infer("acme", name, TEXTS[:1])
    assert result.version == second.name
    check(world, result, TEXTS[:1])
    old = await world.infer("acme", first.name, TEXTS[:1])
    assert old.version == first.name
    check(world, old, TEXTS[:1])


async def test_a_canary_answers_its_share_and_says_so(world: World) -> None:
    name = "tenants/acme/vplms/split"
    first = world.add("acme", "split", seed=1)
    second = world.add("acme", "split", seed=2)
    world.storage.aliases[name, "serving"] = 1
    world.storage.canaries[name, "serving"] = Canary(2, 0.5)
    keys = [f"user-{index}" for index in range(12)]
    told: dict[str, str] = {}
    for key in keys * 2:
        result = await world.infer("acme", name, TEXTS[:1], routing_key=key)
        check(world, result, TEXTS[:1])
        assert told.setdefault(key, result.version) == result.version, "sticky"
        assert result.digest == (first if result.version == first.name else second).digest
    assert set(told.values()) == {first.name, second.name}
    drawn = {(await world.infer("acme", name, TEXTS[:1])).version for _ in range(24)}
    assert drawn == {first.name, second.name}, "without a key, every request is drawn anew"
    del world.storage.canaries[name, "serving"]
    world.storage.aliases[name, "serving"] = 2
    await asyncio.sleep(0.35)
    for key in keys:
        assert (await world.infer("acme", name, TEXTS[:1], routing_key=key)).version == second.name


async def test_other_aliases_and_versions(world: World) -> None:
    name = "tenants/acme/vplms/canary"
    first = world.add("acme", "canary", seed=1)
    second = world.add("acme", "canary", seed=2)
    world.storage.aliases[name, "next"] = 1
    assert (await world.infer("acme", name, TEXTS[:1], alias="next")).version == first.name
    assert (await world.infer("acme", name, TEXTS[:1])).version == second.name
    with pytest.raises(errors.NotFound):
        await world.infer("acme", name, TEXTS[:1], alias="absent")
    with pytest.raises(errors.NotFound):
        await world.infer("acme", f"{name}/versions/9", TEXTS[:1])
    with pytest.raises(errors.InvalidArgument, match="version or an alias"):
        await world.infer("acme", first.name, TEXTS[:1], alias="next")


async def test_a_deleted_vplm_stops_answering(world: World) -> None:
    name = "tenants/acme/vplms/gone"
    version = world.add("acme", "gone", seed=5)
    await world.infer("acme", name, TEXTS[:1])
    await world.infer("acme", version.name, TEXTS[:1])
    world.storage.delete(name)
    await asyncio.sleep(0.35)
    for gone in (name, version.name):
        with pytest.raises(errors.NotFound):
            await world.infer("acme", gone, TEXTS[:1])


async def test_foreign_and_absent_look_the_same(world: World) -> None:
    world.add("rival", "secret", seed=6)
    await world.infer("rival", "tenants/rival/vplms/secret", TEXTS[:1])
    told = []
    for name in ("tenants/rival/vplms/secret", "tenants/rival/vplms/absent", "secret", "absent"):
        full = name if "/" in name else f"tenants/acme/vplms/{name}"
        with pytest.raises(errors.NotFound) as caught:
            await world.infer("acme", full, TEXTS[:1])
        error = caught.value
        told.append(
            (type(error), error.reason, error.message.replace(full, "X"), sorted(error.metadata))
        )
    assert len(set(map(str, told))) == 1


async def test_storage_gone_keeps_serving_what_is_known(world: World) -> None:
    version = world.add("acme", "kept", seed=7)
    name = "tenants/acme/vplms/kept"
    await world.infer("acme", name, TEXTS[:1])
    world.storage.away = True
    try:
        await asyncio.sleep(0.35)
        result = await world.infer("acme", name, TEXTS)
        assert result.version == version.name
        check(world, result, TEXTS)
        with pytest.raises(errors.Unavailable):
            await world.infer("acme", "tenants/acme/vplms/unknown", TEXTS[:1])
    finally:
        world.storage.away = False


async def test_a_module_is_loaded_once_for_many(world: World) -> None:
    world.add("acme", "popular", seed=8)
    before = world.storage.asked["download"]
    world.storage.gate = asyncio.Event()
    asked = [
        asyncio.create_task(world.infer("acme", "tenants/acme/vplms/popular", TEXTS[:1]))
        for _ in range(10)
    ]
    other = await world.infer("acme", "tenants/acme/vplms/kept", TEXTS[:1])
    assert other.timings.load_s == 0, "others overtake"
    world.storage.gate.set()
    await asyncio.gather(*asked)
    world.storage.gate = None
    assert world.storage.asked["download"] - before == 1


async def test_a_flood_does_not_hold_up_others(world: World) -> None:
    world.add("flood", "big", seed=11)
    world.add("guest", "small", seed=12)
    await world.infer("guest", "tenants/guest/vplms/small", TEXTS[:1])
    texts = [f"{TEXTS[index % 4]} {index}" for index in range(4_000)]
    flood = asyncio.create_task(world.infer("flood", "tenants/flood/vplms/big", texts))
    while world.stats.queue_texts < 500:  # noqa: ASYNC110 -- the queue has no event
        await asyncio.sleep(0.005)
    for _ in range(3):
        result = await world.infer("guest", "tenants/guest/vplms/small", TEXTS[:1])
        check(world, result, TEXTS[:1])
    assert not flood.done(), "the guest overtakes"
    await flood


async def test_a_backbone_that_comes_late_is_served(tmp_path: Path) -> None:
    late = tmp_path / "late"
    seen = asyncio.create_task(_ready_after(late))
    await asyncio.sleep(0.5)
    assert not seen.done()
    write_toy_backbone(late)
    assert await seen


async def _ready_after(late: Path) -> bool:
    settings = ProcessorSettings(
        service_key=SecretStr(new_key(KeyKind.SERVICE).text), backbones=f"toy=dir:{late}"
    )
    readiness = Readiness(BACKBONES_CHECK)
    async with build_channel("127.0.0.1:1", credentials=None) as channel:
        processor = Processor.build(settings, VersionReader(channel))
        async with processor.running(readiness), asyncio.timeout(20):
            while not readiness.ready:
                await readiness.changed.wait()
            return processor.engine.backbones == ("toy",)
