"""Domains as they are made: what learns and what stays, whose rows, killed and gone on with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from smile.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, SmileError
from smile.model.backbone import Backbone
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.packing import pack
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.distill.documents import Document, served_texts
from smile.model.skip.distill.run import Event, Phase
from smile.model.skip.domain.creation import Corpus, Creation, DomainWish, Kin, domain_settings
from smile.model.skip.domain.mixing import AsServed, Mix
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import AFTER_IN, AFTER_NORM, AFTER_OUT, FIRST, LAST, MERGE_NORM
from smile.model.skip.ngrams import ngram_keys
from smile.model.skip.rows import EncoderRows
from smile.model.toy import WORDS, write_toy_backbone
from smile.representations import places
from smile.representations.build import count_texts
from smile.representations.delta import DeltaRules, Encoders, differences
from smile.representations.domains import DomainTree, EffectiveRows
from smile.representations.keys import keys_of_texts
from smile.representations.manifest import GENERAL, TableManifest
from smile.representations.snapshot import Table
from tests.contract.materialized_world import Encoder

RULES = DeltaRules(0.6, 0.0)


def documents(first: int) -> list[Document]:
    words = [word for word in WORDS if not word.startswith("#")]
    lines = [" ".join(words[at % 7 + first : at % 7 + first + 9]) for at in range(24)]
    return [Document(f"{line.capitalize()}. {line.upper()}.") for line in lines]


@dataclass(frozen=True)
class World:
    """A backbone and its local encoder."""

    backbone: Backbone
    file: EncoderFile

    @property
    def general(self) -> EncoderRows:
        return EncoderRows.of(self.file, self.backbone)

    def corpus(self, first: int) -> Corpus:
        known = documents(first)
        return Corpus("words", known[:20], known[20:])

    def creation(self, wish: DomainWish, first: int, epochs: int = 3) -> Creation:
        kin = Kin.of(wish.folder, wish.parent, self.file, self.backbone)
        settings = domain_settings(
            kin.file, epochs=epochs, batch_tokens=64, passage_tokens=32, seed=3
        )
        return Creation(wish, kin, self.corpus(first), self.backbone, settings)

    def make(self, wish: DomainWish, first: int) -> TableManifest:
        return self.creation(wish, first).run()

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return [text.ids for text in self.backbone.tokenizer.encode(texts, truncate=True)]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("toy")
    backbone = Backbone.load(write_toy_backbone(folder / "toy"), "toy")
    made = Encoder.make(backbone, folder / "general.safetensors")
    return World(backbone, artifact.read(made.path))


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`news`, and `sport` under it."""
    place = tmp_path_factory.mktemp("domains") / "all"
    world.make(DomainWish("news", GENERAL, place, RULES), 0)
    world.make(DomainWish("sport", "news", place, RULES), 5)
    return place


def frequent(world: World, first: int, alpha: float) -> set[int]:
    counts: Counter[int] = Counter()
    for ids in world.ids(list(served_texts(world.corpus(first).learned))):
        counts.update(keys_of_texts([ids], world.general.outside).tolist())
    taken: set[int] = set()
    covered = 0
    for key, count in sorted(counts.items(), key=lambda one: (-one[1], one[0])):
        if covered >= alpha * counts.total():
            break
        taken.add(key)
        covered += count
    return taken


def test_rows_learn_and_merging_stays(world: World, folder: Path) -> None:
    file = artifact.read(folder / "news" / places.ENCODER)
    assert file.facts.parent == world.file.digest
    same = {
        name: (file.tensors[name] == world.file.tensors[name]).all() for name in world.file.tensors
    }
    for part in (MERGE_NORM, AFTER_IN, AFTER_OUT, AFTER_NORM):
        assert same[f"{part}.weight"] and same[f"{part}.bias"]
    assert not same[f"{FIRST}.weight"] and not same[f"{LAST}.weight"]
    measures = file.facts.measures
    assert measures["error_layer_2"] < measures["parent_error_layer_2"]


def test_the_table_has_its_encoders_rows_of_frequent_ngrams(world: World, folder: Path) -> None:
    table = Table.open(folder / "news" / places.TABLE, verify=True)
    rows = EncoderRows.of(artifact.read(folder / "news" / places.ENCODER), world.backbone)
    assert set(table.keys.tolist()) == frequent(world, 0, RULES.alpha)
    assert (table.store.rows == rows.packed(table.keys, table.format)).all()
    stated = table.manifest
    assert stated.origin == rows.origin and stated.parent_encoder == world.file.digest
    assert stated.delta is not None and stated.delta.alpha == RULES.alpha
    assert stated.corpus.digest and stated.corpus.covered >= RULES.alpha * stated.corpus.tokens


def test_a_child_begins_as_its_parent_and_differs_from_it(world: World, folder: Path) -> None:
    news, sport = (Table.open(folder / name / places.TABLE) for name in ("news", "sport"))
    file = artifact.read(folder / "sport" / places.ENCODER)
    assert file.facts.parent == artifact.read(folder / "news" / places.ENCODER).digest
    assert sport.manifest.delta is not None
    assert sport.manifest.delta.parent_table == news.digest
    tree = DomainTree(world.general.origin, [sport, news])
    assert tree.path("sport") == ("sport", "news", GENERAL)


@torch.no_grad()
def test_what_learns_is_what_serves(world: World, folder: Path) -> None:
    """States from a mix are those from rows that are looked up, of the domain's or computed."""
    news = Table.open(folder / "news" / places.TABLE)
    encoder = LocalEncoder.of(artifact.read(folder / "news" / places.ENCODER), world.backbone)
    counted = count_texts(served_texts(world.corpus(0).learned), world.ids, world.general.outside)
    mix = Mix.of(EffectiveRows(world.general), counted[1], (RULES.alpha,))
    texts = [document.text for document in documents(2)[:5]]
    packed = pack(world.ids(texts))
    keys = keys_of_texts(world.ids(texts), world.general.outside)
    has = set(news.keys.tolist())
    assert mix.own(keys, RULES.alpha).tolist() == [key in has for key in keys.tolist()]
    assert 0 < mix.own(keys, RULES.alpha).sum() < len(keys)
    row_format = RowFormat(RowDtype.FLOAT16, world.backbone.shape.hidden)
    rows = row_format.unpack(EffectiveRows(world.general, (news,)).packed(keys, row_format))
    served = encoder.merge(torch.from_numpy(rows), packed)
    learned = mix.states(encoder, packed, RULES.alpha)
    torch.testing.assert_close(learned, served, rtol=0, atol=2e-3)
    parents = encoder.merge(
        torch.from_numpy(row_format.unpack(world.general.packed(keys, row_format))), packed
    )
    torch.testing.assert_close(mix.states(encoder, packed, 0.0), parents, rtol=0, atol=1e-5)
    assert float((served - parents).abs().max()) > 0.01


def test_what_is_measured_is_what_the_table_serves(world: World, tmp_path: Path) -> None:
    """Rows that end near their parent's are in no table: neither do they count."""
    every = world.make(DomainWish("every", GENERAL, tmp_path, RULES), 0)
    table = Table.open(tmp_path / "every" / places.TABLE)
    own = EncoderRows.of(artifact.read(tmp_path / "every" / places.ENCODER), world.backbone)
    encoders = Encoders(own, EffectiveRows(world.general))
    off = np.sort(differences(table.keys, encoders, table.format))
    third = len(off) // 3
    gap = third + int(np.diff(off[third : 2 * third]).argmax())  # far from any row's own
    least = float(off[gap : gap + 2].mean())
    rules = replace(RULES, difference_min=least)
    some = world.make(DomainWish("some", GENERAL, tmp_path, rules), 0)
    assert 0 < some.rows < every.rows
    table = Table.open(tmp_path / "some" / places.TABLE)
    file = artifact.read(tmp_path / "some" / places.ENCODER)
    encoder = LocalEncoder.of(file, world.backbone)
    counted = count_texts(served_texts(world.corpus(0).learned), world.ids, world.general.outside)
    mix = Mix.of(EffectiveRows(world.general), counted[1], (RULES.alpha,), least)
    packed = pack(world.ids([document.text for document in documents(0)[:5]]))
    asked = ngram_keys(packed, encoder.outside).numpy()
    rows = EffectiveRows(world.general, (table,)).packed(asked, table.format)
    with torch.no_grad():
        served = encoder.merge(torch.from_numpy(table.format.unpack(rows)), packed)
        measured = AsServed(encoder, mix, RULES.alpha)(packed)
        learned = mix.states(encoder, packed, RULES.alpha)
    torch.testing.assert_close(measured, served, rtol=0, atol=2e-3)
    assert float((learned - served).abs().max()) > 0.01
    first = artifact.read(tmp_path / "every" / places.ENCODER).facts.measures
    assert file.facts.measures["error_layer_2"] > first["error_layer_2"]


def test_where_no_row_moved_far_enough_it_goes_on_with_a_lower_bar(
    world: World, folder: Path, tmp_path: Path
) -> None:
    far = DomainWish("news", GENERAL, tmp_path, replace(RULES, difference_min=1e6))
    with pytest.raises(
        InvalidArgument, match="by 1e\\+06 of their length somewhere, they do so by"
    ):
        world.make(far, 0)
    phases: list[Phase] = []
    lower = DomainWish("news", GENERAL, tmp_path, RULES)
    made = world.creation(lower, 0).run(lambda event: phases.append(event.phase))
    assert Phase.LEARNING not in phases
    assert made.files == Table.open(folder / "news" / places.TABLE).manifest.files


def test_a_mix_of_other_shares_is_another(world: World) -> None:
    counted = count_texts(served_texts(world.corpus(0).learned), world.ids, world.general.outside)
    one, other = (
        Mix.of(EffectiveRows(world.general), counted[1], alphas) for alphas in ((0.5,), (0.3, 1.0))
    )
    assert one.digest != other.digest
    assert {other.drawn(1, step) for step in range(50)} == {0.3, 1.0}
    assert [other.drawn(1, step) for step in range(9)] == [
        other.drawn(1, step) for step in range(9)
    ]
    all_of_it = counted[1].keys
    assert other.own(all_of_it, 1.0).all() and not other.own(all_of_it, 0.0).any()
    assert not other.own(np.array([(1 << 60) + 7]), 1.0).any()


class _KilledError(Exception):
    """Power is out."""


def test_killed_it_goes_on_to_the_same_domain(world: World, folder: Path, tmp_path: Path) -> None:
    whole = Table.open(folder / "news" / places.TABLE).manifest
    wish = DomainWish("news", GENERAL, tmp_path, RULES)

    def die(event: Event) -> None:
        if event.phase is Phase.LEARNING and event.done == 4:
            raise _KilledError

    with pytest.raises(_KilledError):
        world.creation(wish, 0).run(die)
    assert places.domains_in(tmp_path) == (), "what is not done is no domain"
    with pytest.raises(FailedPrecondition) as caught:
        world.creation(wish, 0, epochs=5).run()
    assert caught.value.reason == "DISTILLATION_DIFFERS"
    made = world.make(wish, 0)
    assert made.files == whole.files, "all but the time it took"
    assert [path.name for path in tmp_path.iterdir()] == ["news"]


def test_refused(world: World, folder: Path, tmp_path: Path) -> None:
    cases: list[tuple[DomainWish, type[SmileError], str]] = [
        (
            DomainWish("law", "poetry", folder),
            NotFound,
            "one of general, news, sport, got 'poetry'",
        ),
        (
            DomainWish("law", "news", tmp_path / "no"),
            NotFound,
            "parent must be one of general, got",
        ),
        (DomainWish("news", GENERAL, folder), AlreadyExists, "is there already"),
    ]
    for wish, kind, why in cases:
        with pytest.raises(kind, match=why):
            world.make(wish, 0)
    other = replace(world.file, facts=replace(world.file.facts, backbone_digest="0" * 64))
    with pytest.raises(FailedPrecondition) as caught:
        Kin.of(folder, GENERAL, other, world.backbone)
    assert caught.value.reason == "BACKBONE_MISMATCH"
    for name in ("../news", "", GENERAL):
        with pytest.raises(InvalidArgument):
            DomainWish(name, "news", folder)
    with pytest.raises(InvalidArgument, match=r"budget must be at least .* one row, got 5"):
        world.make(DomainWish("law", GENERAL, tmp_path, budget_bytes=5), 0)
    assert list(tmp_path.iterdir()) == [], "refused before anything is begun"
    wish = DomainWish("empty", GENERAL, tmp_path)
    kin = Kin.of(tmp_path, GENERAL, world.file, world.backbone)
    corpus = Corpus("blank", [Document("one two")], [Document("three four")])
    with pytest.raises(InvalidArgument, match="at least 1 sentence"):
        Creation(wish, kin, corpus, world.backbone, domain_settings(kin.file)).run()


def test_a_parent_whose_files_do_not_fit_is_refused(
    world: World, folder: Path, tmp_path: Path
) -> None:
    place = tmp_path / "domains"
    world.make(DomainWish("news", GENERAL, place, RULES), 0)
    (place / "news" / places.ENCODER).write_bytes((folder / "sport" / places.ENCODER).read_bytes())
    with pytest.raises(FailedPrecondition, match="beside domain 'news' is not the one"):
        Kin.of(place, "news", world.file, world.backbone)
    rows = place / "news" / places.TABLE / "rows.bin"
    data = bytearray(rows.read_bytes())
    data[5] ^= 1
    rows.write_bytes(data)
    with pytest.raises(SmileError, match="SHA-256"):
        Kin.of(place, "news", world.file, world.backbone)
