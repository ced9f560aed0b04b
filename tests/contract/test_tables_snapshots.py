"""Snapshots that are damaged, foreign or replaced: refused with a reason, or the same answers."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from smile.errors import DataCorrupted, FailedPrecondition
from smile.model.backbone import Backbone
from smile.model.ngram_rows import RowDtype
from smile.model.toy import write_toy_backbone
from smile.representations.manifest import FILES, MANIFEST_FILE, ROWS_FILE
from smile.representations.snapshot import Table
from tests.contract.materialized_world import Encoder
from tests.contract.tables_world import ALL, ASKED, SEEN, Asked, Bits, Ground

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]
FLIPS = 40  # bits of a file that are flipped, one after the other


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = (halve, empty, flip, Path.unlink, become_a_folder)
DAMAGED = [
    pytest.param(name, damage, id=f"{name}-{damage.__name__}")
    for name in (MANIFEST_FILE, *FILES)
    for damage in DAMAGES
    if (name, damage) != (MANIFEST_FILE, flip)  # which bit it is decides: a test of its own
]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.at(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def table(ground: Ground) -> Path:
    return ground.table("table", SEEN)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(ground: Ground, table: Path) -> tuple[Bits, Bits]:
    """What is answered materialised and exactly over a table that is as it was written."""
    async with ground.processor(table) as asked:
        assert await asked.missing(SEEN) == 0
        return await asked.bits(), await asked.exact()


async def holds(asked: Asked, undisturbed: tuple[Bits, Bits]) -> None:
    """Answers are the undisturbed ones, in both modes."""
    assert (await asked.bits(), await asked.exact()) == undisturbed


def copied(table: Path, folder: Path) -> Path:
    shutil.copytree(table, folder / "copy")
    return folder / "copy"


@pytest.mark.parametrize(("name", "damage"), DAMAGED)
async def test_what_is_damaged_is_refused_and_taken_once_it_is_whole(
    ground: Ground,
    table: Path,
    undisturbed: tuple[Bits, Bits],
    tmp_path: Path,
    name: str,
    damage: Callable[[Path], None],
) -> None:
    place = copied(table, tmp_path)
    damage(place / name)
    with capture_logs() as logs:
        async with ground.processor(place) as asked:
            told = [line for line in logs if line["event"] == "a table cannot be used"]
            assert len(told) == 1 and (name in told[0]["why"] or "manifest" in told[0]["why"])
            assert (await asked.infer(SEEN)).materialization is not None
            assert await asked.missing(SEEN) > 0
            await holds(asked, undisturbed)
            _mend(place / name, table / name)
            await asked.until_found(SEEN)
            await holds(asked, undisturbed)


def _mend(place: Path, source: Path) -> None:
    """What was written is there again, at once."""
    if place.is_dir():
        place.rmdir()
    beside = place.with_name("beside")
    shutil.copy(source, beside)
    beside.replace(place)


@pytest.mark.parametrize("name", (MANIFEST_FILE, *FILES))
async def test_no_bit_of_any_file_changes_a_row(
    ground: Ground, table: Path, tmp_path: Path, name: str
) -> None:
    place, whole = copied(table, tmp_path), Table.open(table)
    origin = ground.encoder.stand_in.origin
    data = (place / name).read_bytes()
    drawn = np.random.default_rng(7).choice(8 * len(data), FLIPS, replace=False)
    refused = 0
    for bit in drawn.tolist():
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        (place / name).write_bytes(changed)
        try:
            opened = Table.open(place, origin, verify=True)
        except (DataCorrupted, FailedPrecondition):
            refused += 1
            continue
        for mine, theirs in ((opened.keys, whole.keys), (opened.store.rows, whole.store.rows)):
            np.testing.assert_array_equal(mine, theirs)
        assert name == MANIFEST_FILE, "only what tells of the corpus may be another"
    assert refused == FLIPS or (name == MANIFEST_FILE and refused > FLIPS // 2)


async def test_rows_of_another_backbone_or_encoder_are_refused(
    ground: Ground, undisturbed: tuple[Bits, Bits], tmp_path: Path
) -> None:
    other = Backbone.load(write_toy_backbone(tmp_path / "other", seed=9), "toy")
    makers: Sequence[tuple[Encoder, str]] = (
        (Encoder.make(other, tmp_path / "of-other.safetensors"), "for backbone"),
        (
            Encoder.make(ground.encoder.backbone, tmp_path / "another.safetensors", seed=6),
            "for local encoder",
        ),
    )
    for number, (maker, why) in enumerate(makers):
        foreign = maker.table(tmp_path / f"table-{number}", SEEN)
        with capture_logs() as logs:
            async with ground.processor(foreign) as asked:
                (told,) = [line for line in logs if line["event"] == "a table cannot be used"]
                assert why in told["why"] and maker.stand_in.digest is not None
                assert await asked.missing(SEEN) > 0
                await holds(asked, undisturbed)


async def test_an_encoder_of_another_backbone_or_none_leaves_exact_answers(
    ground: Ground, undisturbed: tuple[Bits, Bits], tmp_path: Path
) -> None:
    other = Backbone.load(write_toy_backbone(tmp_path / "other", seed=9), "toy")
    foreign = Encoder.make(other, tmp_path / "foreign.safetensors").path
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(ground.encoder.path.read_bytes()[:-7])
    for place in (foreign, cut, tmp_path / "nowhere.safetensors"):
        with capture_logs() as logs:
            async with ground.processor(skip=f"toy={place}") as asked:
                assert any(line["event"] == "a local encoder cannot be used" for line in logs)
                assert await asked.exact() == undisturbed[1]
                with pytest.raises(FailedPrecondition) as caught:
                    await asked.infer()
                assert caught.value.reason == "NOT_MATERIALIZED"


@pytest.mark.parametrize("how", ["by a link", "by renaming", "deleted"])
async def test_a_snapshot_is_replaced_while_it_is_mapped(
    ground: Ground, table: Path, undisturbed: tuple[Bits, Bits], tmp_path: Path, how: str
) -> None:
    other = ground.table(f"other {how}", ASKED)
    place = tmp_path / "current"
    if how == "by a link":
        place.symlink_to(table)
    else:
        shutil.copytree(table, place)
    async with ground.processor(place, learn=False) as asked:
        assert await asked.missing(SEEN) == 0
        if how == "by a link":
            (tmp_path / "next").symlink_to(other)
            (tmp_path / "next").replace(place)
        elif how == "by renaming":
            shutil.copytree(other, tmp_path / "next")
            place.rename(tmp_path / "before")
            (tmp_path / "next").rename(place)
            shutil.rmtree(tmp_path / "before")
        else:
            shutil.rmtree(place)
        await holds(asked, undisturbed)
        if how == "deleted":
            assert await asked.missing(SEEN) == 0, "what is mapped stays"
        else:
            await asked.until_found(ASKED)
        await holds(asked, undisturbed)


async def test_a_table_larger_than_what_is_read_at_start_comes_in_behind(
    ground: Ground,
    table: Path,
    undisturbed: tuple[Bits, Bits],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.processor.engine.OPENED_AT_START_BYTES_MAX", 1)
    async with ground.processor(table, learn=False) as asked:
        await holds(asked, undisturbed)
        await asked.until_found(SEEN)
        await holds(asked, undisturbed)
    broken = copied(table, tmp_path)
    flip(broken / ROWS_FILE)
    async with ground.processor(broken, learn=False) as asked:
        for _ in range(20):
            await holds(asked, undisturbed)
        assert await asked.missing(ALL) > 0


@pytest.mark.parametrize("name", FILES)
async def test_rows_in_int8_are_rounded_alike_while_their_table_is_refused(
    ground: Ground, tmp_path: Path, name: str
) -> None:
    whole = ground.encoder.table(tmp_path / "whole", SEEN, RowDtype.INT8)
    async with ground.processor(whole, learn=False) as asked:
        reference = await asked.bits(), await asked.exact()
    broken = copied(whole, tmp_path)
    flip(broken / name)
    async with ground.processor(broken) as asked:
        assert await asked.missing(SEEN) > 0
        await holds(asked, reference)
        await asked.learned(ASKED)
        await holds(asked, reference)
        _mend(broken / name, whole / name)
        await asked.until_found(SEEN)
        await holds(asked, reference)
