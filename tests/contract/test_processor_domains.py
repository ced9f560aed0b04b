"""Domains through a real processor: each text has its own domain's rows, whatever it is beside."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from numpy.typing import NDArray

from smile.errors import FailedPrecondition
from smile.model.backbone import Backbone
from smile.model.ngram_rows import RowFormat
from smile.model.toy import write_toy_backbone
from smile.representations.domains import EffectiveRows
from smile.representations.keys import keys_of_texts
from smile.representations.manifest import Origin
from smile.representations.places import TABLE
from smile.representations.snapshot import Table
from smile.resources import Classification, Exactness, FanoutAnswer, Prediction, VplmVersion
from smile.v1 import resources_pb2
from tests.contract.materialized_world import Encoder, Over
from tests.contract.processor_world import World, module_spec, processor_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

MATERIALIZED = resources_pb2.EXACTNESS_MATERIALIZED
NEWS = ("the movie was good and the story was sad", "the movie was good", "a slow train")
SPORT = ("a slow train and a cold river", "a cold river")
LAW = ("the story was sad and the river was cold", "the story was sad")
TEXTS = (*NEWS, *SPORT, *LAW, "a good train was sad and the movie cold")
ALPHA = 0.6


@dataclass(frozen=True)
class Known:
    """Rows by hand: of an n-gram those of the first domain on the way up that has it."""

    general: Encoder
    way: tuple[tuple[Encoder, frozenset[int]], ...]

    @property
    def origin(self) -> Origin:
        return self.general.stand_in.origin

    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        rows = []
        for key in keys.tolist():
            owner = next((own for own, has in self.way if key in has), self.general)
            rows.append(owner.stand_in.packed(np.array([key]), row_format)[0])
        return np.array(rows)


@dataclass(frozen=True)
class Domains:
    """A folder of `news`, `sport` under it, and `law`, and what each gives."""

    folder: Path
    general: Encoder
    rows: Mapping[str, Known]
    tables: Mapping[str, Table]


def frequent(encoder: Encoder, texts: tuple[str, ...], alpha: float) -> frozenset[int]:
    """The fewest n-grams, the most frequent first, that cover so much: with a Counter."""
    ids = [text.ids for text in encoder.backbone.tokenizer.encode(texts)]
    counts = Counter(keys_of_texts(ids, encoder.local.outside).tolist())
    taken: list[int] = []
    for key, _ in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        if sum(counts[one] for one in taken) >= alpha * counts.total():
            break
        taken.append(key)
    return frozenset(taken)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def domains(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Domains:
    place = tmp_path_factory.mktemp("skip")
    backbone = Backbone.load(toy, "toy")
    general, news, sport, law = (
        Encoder.make(backbone, place / f"{seed}.safetensors", seed) for seed in range(4)
    )
    folder = place / "domains"
    root = Over("general", EffectiveRows(general.stand_in))
    of_news = news.domain(folder, "news", NEWS, root, ALPHA)
    under = Over("news", EffectiveRows(general.stand_in, (of_news,)))
    of_sport = sport.domain(folder, "sport", SPORT, under, ALPHA)
    of_law = law.domain(folder, "law", LAW, root, ALPHA)
    has = {
        "news": (news, frequent(news, NEWS, ALPHA)),
        "sport": (sport, frequent(sport, SPORT, ALPHA)),
        "law": (law, frequent(law, LAW, ALPHA)),
    }
    ways = {"": (), "news": ("news",), "sport": ("sport", "news"), "law": ("law",)}
    rows = {name: Known(general, tuple(has[one] for one in way)) for name, way in ways.items()}
    return Domains(folder, general, rows, {"news": of_news, "sport": of_sport, "law": of_law})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(toy: Path, domains: Domains) -> AsyncIterator[World]:
    async with processor_world(toy, **settings(domains.general, domains.folder)) as world:
        await world.ready()
        yield world


def settings(general: Encoder, folder: Path) -> dict[str, Any]:
    return {"skip": f"toy={general.path}", "domains": f"toy={folder}", "learn_s": 0.05}


def add(world: World, vplm: str, domain: str, seed: int = 0) -> VplmVersion:
    spec = replace(module_spec(world.backbone, "pfeiffer", "topic"), domain=domain)
    return world.put(f"tenants/acme/vplms/{vplm}", spec, seed)


def scores(world: World, version: str, prediction: Prediction) -> list[float]:
    assert isinstance(prediction.result, Classification)
    score_of = {row.label: row.score for row in prediction.result.scores}
    return [score_of[label] for label in world.modules[version].spec.head.labels]


async def ask(world: World, domains: Domains, version: VplmVersion, text: str) -> list[float]:
    """The answer, which is that of the domain's rows."""
    name = version.name.rpartition("/versions/")[0]
    domain = version.spec.domain
    result = await world.infer("acme", name, [text], exactness=MATERIALIZED)
    told = result.materialization
    assert told is not None and told.domain == domain
    assert told.domain_digest == (domains.tables[domain].digest if domain else "")
    assert told.encoder_digest == domains.general.stand_in.digest
    found = scores(world, version.name, result.predictions[0])
    module = world.modules[version.name]
    expected = domains.general.expected(module, text, domains.rows[domain])
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=0, atol=1e-5)
    return found


async def test_texts_of_several_domains_in_one_batch_are_answered_as_each_alone(
    world: World, domains: Domains
) -> None:
    """The very same module for all, so that nothing but the domain tells answers apart."""
    versions = [add(world, f"one-{name or 'general'}", name) for name in domains.rows]
    asked = [(version, text) for text in TEXTS for version in versions]
    alone = [await ask(world, domains, *one) for one in asked]
    together = await asyncio.gather(*(ask(world, domains, *one) for one in asked))
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-6)
    by_text = np.array(alone).reshape(len(TEXTS), len(versions), -1)
    assert np.abs(by_text[:, 1:] - by_text[:, :1]).max(axis=(0, 2)).min() > 1e-3


async def test_one_text_of_vplms_of_several_domains(world: World, domains: Domains) -> None:
    """Those of one domain share what is looked up; those of others have their own."""
    names = ["", "news", "sport", "news", "", "law"]
    versions = [add(world, f"fan-{n}", name, seed=n) for n, name in enumerate(names)]
    add(world, "fan-lost", "poetry")
    alone = [await ask(world, domains, version, NEWS[0]) for version in versions]
    tokens = len(world.backbone.tokenizer.encode([NEWS[0]])[0])
    before = world.stats.ngrams_total
    vplms = [version.name.rpartition("/versions/")[0] for version in versions]
    vplms.append("tenants/acme/vplms/fan-lost")
    result = await world.infer_fanout("acme", NEWS[0], vplms, exactness=MATERIALIZED)
    *answers, lost = result.entries
    assert isinstance(lost, FailedPrecondition) and lost.reason == "DOMAIN_NOT_SERVED"
    for name, version, answer, truth in zip(names, versions, answers, alone, strict=True):
        assert isinstance(answer, FanoutAnswer) and answer.materialization is not None
        assert answer.materialization.domain == name
        found = scores(world, version.name, answer.prediction)
        np.testing.assert_allclose(found, truth, rtol=0, atol=1e-6)
    if result.timings.batch_vplms == len(names):  # all in one batch
        assert world.stats.ngrams_total - before == tokens * len(set(names))


async def test_a_domain_that_is_not_served_is_refused_and_exact_answers_do_without(
    world: World,
) -> None:
    version = add(world, "lost", "poetry")
    name = "tenants/acme/vplms/lost"
    with pytest.raises(FailedPrecondition, match="served are general, law, news, sport") as caught:
        await world.infer("acme", name, [NEWS[0]], exactness=MATERIALIZED)
    assert caught.value.reason == "DOMAIN_NOT_SERVED"
    assert caught.value.metadata["domain"] == "poetry"
    result = await world.infer("acme", name, [NEWS[0]])
    assert result.exactness is Exactness.EXACT and result.materialization is None
    found = scores(world, version.name, result.predictions[0])
    expected = world.expected(version.name, NEWS[0]).reshape(-1)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


async def test_what_is_learned_are_general_rows(toy: Path, domains: Domains) -> None:
    changes = {"learn_tenants_min": 1, "learn_count_min": 1.0}
    more = settings(domains.general, domains.folder) | changes
    async with processor_world(toy, **more) as world:
        await world.ready()
        sport, plain = add(world, "sport", "sport"), add(world, "plain", "")
        name = "tenants/acme/vplms/sport"
        async with asyncio.timeout(60):
            while True:  # until all that the domain lacks has been learned
                await ask(world, domains, sport, SPORT[0])
                result = await world.infer("acme", name, [SPORT[0]], exactness=MATERIALIZED)
                assert result.materialization is not None
                if result.materialization.found == result.materialization.ngrams:
                    break
                await asyncio.sleep(0.02)
        before = world.stats
        await ask(world, domains, plain, SPORT[0])
        after = world.stats
        asked = after.ngrams_total - before.ngrams_total
        found = after.ngrams_found_total - before.ngrams_found_total
        own = sum(key in has for key in keys(domains, SPORT[0]) for _, has in way(domains))
        assert 0 < found == asked - own < asked, "a domain's own n-grams are not learned for it"


def keys(domains: Domains, text: str) -> list[int]:
    ids = [one.ids for one in domains.general.backbone.tokenizer.encode([text])]
    return [int(key) for key in keys_of_texts(ids, domains.general.local.outside)]


def way(domains: Domains) -> list[tuple[Encoder, frozenset[int]]]:
    """Of sport, what each has that those before it have not."""
    (sport, own), (news, more) = domains.rows["sport"].way
    return [(sport, own), (news, more - own)]


async def test_a_domain_that_is_created_again_is_another(
    toy: Path, domains: Domains, tmp_path: Path
) -> None:
    folder = tmp_path / "domains"
    shutil.copytree(domains.folder, folder)
    async with processor_world(toy, **settings(domains.general, folder)) as world:
        await world.ready()
        law = add(world, "law", "law")
        await ask(world, domains, law, LAW[0])
        other = domains.rows["sport"].way[0][0]
        root = Over("general", EffectiveRows(domains.general.stand_in))
        remade = other.domain(tmp_path / "next", "law", LAW, root, ALPHA)
        assert remade.digest != domains.tables["law"].digest
        shutil.rmtree(folder / "law")
        (tmp_path / "next" / "law").rename(folder / "law")
        has = frequent(other, LAW, ALPHA)
        after = replace(
            domains,
            rows={**domains.rows, "law": Known(domains.general, ((other, has),))},
            tables={**domains.tables, "law": remade},
        )
        name = "tenants/acme/vplms/law"
        async with asyncio.timeout(60):
            while True:
                result = await world.infer("acme", name, [LAW[0]], exactness=MATERIALIZED)
                assert result.materialization is not None
                if result.materialization.domain_digest == remade.digest:
                    break
                await asyncio.sleep(0.02)
        await ask(world, after, law, LAW[0])
        await ask(world, after, add(world, "sport", "sport"), SPORT[0])
        # a parent that is another than its child was made over: all stay as they are
        news = other.domain(tmp_path / "last", "news", NEWS, root, ALPHA)
        shutil.rmtree(folder / "news")
        (tmp_path / "last" / "news").rename(folder / "news")
        assert Table.open(folder / "news" / TABLE).digest == news.digest
        for _ in range(10):
            await ask(world, after, add(world, "news", "news"), NEWS[0])
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("broken", ["rows.bin", "manifest.json", "name"])
async def test_a_domain_that_cannot_be_used_takes_no_other_with_it(
    toy: Path, domains: Domains, tmp_path: Path, broken: str
) -> None:
    folder = tmp_path / "domains"
    shutil.copytree(domains.folder, folder)
    if broken == "name":
        (folder / "news").rename(folder / "old-news")
    else:
        place = folder / "news" / TABLE / broken
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        place.write_bytes(data)
    async with processor_world(toy, **settings(domains.general, folder)) as world:
        await world.ready()
        for domain in ("news", "sport"):
            add(world, domain, domain)
            with pytest.raises(FailedPrecondition, match=r"served are general, law$") as caught:
                name = f"tenants/acme/vplms/{domain}"
                await world.infer("acme", name, [NEWS[0]], exactness=MATERIALIZED)
            assert caught.value.reason == "DOMAIN_NOT_SERVED"
        await ask(world, domains, add(world, "law", "law"), LAW[0])
        await ask(world, domains, add(world, "plain", ""), LAW[0])
