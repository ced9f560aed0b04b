"""What looking up an n-gram takes, and what an index takes in memory.

    python -m benchmarks.index [--quick] [--record]

Keys are simulated: trigrams of token ids drawn by Zipf's law, each once. Every structure maps the
same keys to the same rows, and is asked batches of 2,048 tokens, as the processor's are: all of
them in it (hits), or none (misses). `smile` is the product's index, `smile_numpy` the same table
read without native code, `sorted` NumPy's binary search over sorted keys, `dict` Python's own,
`marisa` marisa-trie over the three ids as characters; dict is given ints and marisa strings that
were made before, and both are asked in one comprehension. One thread; figures are of its processor
time, the least of several repetitions in which the structures take turns.

JSON keys: `hit_ns`, `miss_ns`, `build_ns` (per n-gram) and `bytes` (per entry), each by number of
keys and structure; `hit_ns_1e6`, `miss_ns_1e6` and `bytes_1e6` of `smile`, `hit_speedup_1e6` over
the best other. Beside them, at 10^6 keys: `number_ns`, numbering what was not found; `count_ns`,
counting what traffic asks; and `open_s_1m`, opening a snapshot of a million rows.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import marisa_trie
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness.command import Run, script
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.repeat import interleaved
from smile.model.kernels.ngrams import NUMPY, ngram_kernels
from smile.model.ngram_rows import RowFormat
from smile.model.row_dtype import RowDtype
from smile.representations.build import TableWish, write
from smile.representations.counting import NgramCounts
from smile.representations.index import NgramIndex, number_missing
from smile.representations.keys import ANY, ID_BITS, pack_keys
from smile.representations.manifest import CorpusFacts, Origin
from smile.representations.snapshot import Table
from smile.representations.traffic import Counts

SIZES = {"1e5": 10**5, "1e6": 10**6, "1e7": 10**7}
SIZES_QUICK = {"1e4": 10**4, "1e5": 10**5, "1e6": 10**6}
HEADLINE = "1e6"
VOCAB = 30_522
BATCH = 2_048
BATCHES = 100
REPETITIONS = 5
REPETITIONS_QUICK = 3
OPENINGS = 5
SEED = 7
WIDTH = 8  # of the rows of the snapshot that is opened: rows are not read then

Keys: TypeAlias = NDArray[np.int64]
Made = TypeVar("Made")


@dataclass(frozen=True, slots=True)
class Asked:
    """Batches of keys, and the same as ints and as strings."""

    keys: tuple[Keys, ...]
    ints: tuple[list[int], ...]
    words: tuple[list[str], ...]

    @classmethod
    def of(cls, keys: Keys) -> Asked:
        batches = tuple(keys[at : at + BATCH] for at in range(0, len(keys), BATCH))
        return cls(
            batches,
            tuple(batch.tolist() for batch in batches),
            tuple(words_of(batch) for batch in batches),
        )

    @property
    def count(self) -> int:
        return sum(map(len, self.keys))


@dataclass(frozen=True, slots=True)
class Built:
    """A structure with all keys in it.

    Attributes:
        ask: Looks all batches up; gives how many keys it found.
        nbytes: What it keeps in memory.
        build_s: What making it took.
    """

    ask: Callable[[Asked], int]
    nbytes: int
    build_s: float


def simulated(count: int, seed: int = SEED) -> tuple[Keys, Keys]:
    """(keys, others): different trigrams, as many each, in random order."""
    chance = np.random.default_rng(seed)
    found = np.empty(0, np.int64)
    while len(found) < 2 * count:
        ids = np.power(VOCAB, chance.random((3, count))).astype(np.int64)
        found = np.unique(np.concatenate([found, pack_keys(*ids)]))
    found = chance.permutation(found)
    return found[:count], found[count : 2 * count]


def words_of(keys: Keys) -> list[str]:
    """A character an id: what a trie of tokens sees."""
    ids = np.stack([keys >> 2 * ID_BITS, (keys >> ID_BITS) & ANY, keys & ANY], axis=1)
    return [chr(left) + chr(centre) + chr(right) for left, centre, right in ids.tolist()]


def smile(keys: Keys) -> Built:
    """The product's index."""
    index, seconds = timed(lambda: NgramIndex.build(keys))
    return Built(lambda asked: _found(index, asked), index.nbytes, seconds)


def smile_numpy(keys: Keys) -> Built:
    """The same table, built and read by NumPy."""
    index, seconds = timed(lambda: NgramIndex.build(keys, kernels=NUMPY))
    return Built(lambda asked: _found(index, asked), index.nbytes, seconds)


def sorted_keys(keys: Keys) -> Built:
    """Binary search."""

    def build() -> tuple[Keys, NDArray[np.int32]]:
        order = np.argsort(keys)
        return keys[order], order.astype(np.int32)

    def ask(asked: Asked) -> int:
        found = 0
        for batch in asked.keys:
            places = np.searchsorted(ordered, batch)
            places[places == len(ordered)] = 0
            numbers = np.where(ordered[places] == batch, rows[places], -1)
            found += int(np.count_nonzero(numbers >= 0))
        return found

    (ordered, rows), seconds = timed(build)
    return Built(ask, ordered.nbytes + rows.nbytes, seconds)


def dictionary(keys: Keys) -> Built:
    """Python's own."""

    def ask(asked: Asked) -> int:
        get = rows.get
        return sum(len(batch) - [get(key, -1) for key in batch].count(-1) for batch in asked.ints)

    rows, seconds = timed(lambda: {key: row for row, key in enumerate(keys.tolist())})
    objects = sum(sys.getsizeof(key) + sys.getsizeof(row) for key, row in rows.items())
    return Built(ask, sys.getsizeof(rows) + objects, seconds)


def marisa(keys: Keys) -> Built:
    """A trie of tokens, which gives rows of its own."""

    def ask(asked: Asked) -> int:
        get = trie.get
        return sum(
            len(batch) - [get(word, -1) for word in batch].count(-1) for batch in asked.words
        )

    words = words_of(keys)
    trie, seconds = timed(lambda: marisa_trie.Trie(words))
    return Built(ask, len(trie.tobytes()), seconds)


STRUCTURES: Mapping[str, Callable[[Keys], Built]] = {
    "smile": smile,
    "smile_numpy": smile_numpy,
    "sorted": sorted_keys,
    "dict": dictionary,
    "marisa": marisa,
}


def compare(count: int, repetitions: int, done: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Every measure of every structure at so many keys."""
    keys, others = simulated(count)
    chance = np.random.default_rng(SEED)
    hits = Asked.of(chance.choice(keys, BATCH * BATCHES))
    misses = Asked.of(chance.choice(others, BATCH * BATCHES))
    built = {}
    for name, build in STRUCTURES.items():
        built[name] = build(keys)
        assert built[name].ask(hits) == hits.count and built[name].ask(misses) == 0, name
        done()
    found: dict[str, dict[str, float]] = {
        "bytes": {name: one.nbytes / count for name, one in built.items()},
        "build_ns": {name: one.build_s / count * 1e9 for name, one in built.items()},
    }
    for what, asked in (("hit_ns", hits), ("miss_ns", misses)):
        seconds = interleaved(_askers(built, asked), repetitions, done)
        found[what] = {name: min(each) / asked.count * 1e9 for name, each in seconds.items()}
    return found


def _askers(built: Mapping[str, Built], asked: Asked) -> dict[str, Callable[[], float]]:
    def asker(one: Built) -> Callable[[], float]:
        return lambda: timed(lambda: one.ask(asked))[1]

    return {name: asker(one) for name, one in built.items()}


def beside(count: int, repetitions: int) -> dict[str, float]:
    """Numbering misses and counting traffic, in nanoseconds a token."""
    keys, _ = simulated(count)
    counts = Counts()
    asked = [keys[at : at + BATCH] for at in range(0, BATCH * BATCHES, BATCH)]

    def number() -> None:
        for batch in asked:
            number_missing(batch, np.full(len(batch), -1, np.int32), count)

    def observe() -> None:
        for batch in asked:
            counts.observe(batch, "tenant")

    tokens = sum(map(len, asked))
    return {
        name: min(timed(work)[1] for _ in range(repetitions)) / tokens * 1e9
        for name, work in (("number_ns", number), ("count_ns", observe))
    }


class _Zeros:
    """Rows of zeros: what they hold does not matter to who opens them."""

    origin = Origin("none", "", "", 1, WIDTH)

    def packed(self, keys: Keys, row_format: RowFormat) -> NDArray[np.uint8]:
        return np.zeros((len(keys), row_format.row_bytes), np.uint8)


def opening(count: int) -> float:
    """Seconds until a snapshot of so many rows answers: wall time, as the files must be read."""
    keys, _ = simulated(count)
    wish = TableWish(RowFormat(RowDtype.FLOAT16, WIDTH), 1 << 40, VOCAB)
    counts = NgramCounts(keys, np.ones(count, np.int64))
    facts = CorpusFacts("", 0, count, count, count)
    seconds = []
    with tempfile.TemporaryDirectory(prefix="smile-bench-index-") as made:
        write(Path(made) / "table", counts, facts, _Zeros(), wish)
        for _ in range(OPENINGS):
            started = time.perf_counter()
            table = Table.open(Path(made) / "table")
            assert int(table.find(keys[-1:])[0]) == count - 1
            seconds.append(time.perf_counter() - started)
            del table
    return min(seconds)


def timed(work: Callable[[], Made]) -> tuple[Made, float]:
    """What `work` gives, and the thread's processor time that it took."""
    started = time.thread_time()
    made = work()
    return made, time.thread_time() - started


def _found(index: NgramIndex, asked: Asked) -> int:
    return sum(int(np.count_nonzero(index.find(batch) >= 0)) for batch in asked.keys)


def measure(run: Run) -> Figures:
    """All structures at all sizes."""
    sizes = SIZES_QUICK if run.quick else SIZES
    repetitions = run.choose(REPETITIONS, REPETITIONS_QUICK)
    if ngram_kernels() is NUMPY:
        run.say("no native kernels: 'smile' is what NumPy makes of it")
    found = {}
    for name, count in sizes.items():
        steps = len(STRUCTURES) * (1 + 2 * repetitions)
        with run.steps(f"{count:,} keys", steps) as done:
            found[name] = compare(count, repetitions, done)
    figures = found[HEADLINE]
    others = [ns for name, ns in figures["hit_ns"].items() if not name.startswith("smile")]
    return {
        **_by_measure(found),
        "hit_ns_1e6": figures["hit_ns"]["smile"],
        "miss_ns_1e6": figures["miss_ns"]["smile"],
        "bytes_1e6": figures["bytes"]["smile"],
        "hit_speedup_1e6": min(others) / figures["hit_ns"]["smile"],
        **beside(SIZES["1e6"], repetitions),
        "open_s_1m": opening(SIZES["1e6"]),
    }


def _by_measure(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Json]:
    """Tables by measure, then by size and structure."""
    measures: Sequence[str] = ("hit_ns", "miss_ns", "build_ns", "bytes")
    return {
        what: {
            f"{size}.{name}": value
            for size, tables in found.items()
            for name, value in tables[what].items()
        }
        for what in measures
    }


if __name__ == "__main__":
    script("index", measure)
