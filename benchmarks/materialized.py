"""Lower layers looked up instead of computed: how much faster, and how good the answers stay.

One engine, one table, one set of vPLMs: batches of held-out sentences are answered exactly and
materialised in turns. The table has the n-grams of the training documents; `speedup` is at the
share of the held-out texts' n-grams that it has, `speedup_warm` with a table that has them all.
Accuracy is that of modules trained on exact states, the same modules in both modes. The local
encoder is the one that `SMILE_PROCESSOR_SKIP` names for this backbone.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness.command import Run, script
from benchmarks.harness.engine import Asked, EngineDriver, Formed, mixed_pets, outputs
from benchmarks.harness.fleet import BACKBONE
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.repeat import interleaved, medians, paired_ratio
from benchmarks.harness.standin import EVERYTHING, Halves, Tables, backbone, encoder_place
from benchmarks.harness.tasks import Material, Trained, materials, train
from services.processor.materialize.learning import LiveRows
from services.processor.options import Precision
from smile.limits import MIB
from smile.model.backbone import Backbone
from smile.model.loaded import LoadedModule
from smile.model.ngram_rows import RowDtype
from smile.representations.keys import bigrams_of, keys_of_texts
from smile.resources import Exactness

VPLMS = 64
EXACT, COLD, WARM = "exact", "cold", "warm"
BUDGETS_MIB = (1, 16, 64)  # of the sweep, besides none and everything


class Driver(EngineDriver):
    """An engine whose batches are answered exactly or materialised."""

    def __init__(self, precision: Precision) -> None:
        super().__init__(precision)
        self.rows: LiveRows = self.engine.live_rows()[BACKBONE]

    def rate(self, batches: Sequence[Formed], exactness: Exactness, table: Path | None) -> float:
        """Texts a second; None: whatever table is open."""
        if table is not None and self.rows.newer(table):
            self.rows.open(table)
        asked = [replace(one, batch=replace(one.batch, exactness=exactness)) for one in batches]
        started = time.perf_counter()
        self.answer(asked)
        return sum(one.batch.texts for one in asked) / (time.perf_counter() - started)

    def outputs(
        self, trained: Trained, module: LoadedModule, exactness: Exactness
    ) -> list[NDArray[np.float32]]:
        """What a module answers to its held-out texts."""
        return outputs(self.engine, module, trained.held_out.texts, exactness)


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    place, halves = encoder_place(), Halves.load()
    order = np.random.default_rng(0).permutation(len(halves.held_out))[: run.choose(1_024, 256)]
    asked = [halves.held_out[number] for number in order]
    driver = Driver(Precision.FLOAT32)
    with tempfile.TemporaryDirectory(prefix="smile-bench-tables-") as made:
        tables = Tables.at(Path(made))
        with run.steps("building tables", 2) as done:
            cold = tables.make(COLD, halves.train)
            done()
            warm = tables.make(WARM, [*halves.train, *asked])
            done()
        speeds = _speeds(run, driver, asked, {COLD: cold, WARM: warm})
        table = driver.rows.open(cold)
        hits = _hits(table.keys, keys_of_texts(tables.ids(asked), tables.encoder.outside))
        sizes = _sizes(run, driver, Halves(halves.train, tuple(asked)), tables)
        accuracy = _accuracy(run, driver, backbone())
        bfloat16 = _bfloat16(run, asked, {COLD: cold, WARM: warm})
    return {
        **speeds,
        **hits,
        **accuracy,
        "table_bytes": table.manifest.bytes,
        "rows": table.manifest.rows,
        "boundary": table.manifest.origin.boundary,
        "encoder_digest": table.manifest.origin.encoder_digest,
        "encoder_bytes": place.stat().st_size,
        "vplms": VPLMS,
        "bfloat16": bfloat16,
        "sizes": sizes,
    }


def _speeds(
    run: Run, driver: Driver, asked: Sequence[str], tables: Mapping[str, Path]
) -> dict[str, Json]:
    """Texts a second of the same batches, in turns."""
    driver.load(mixed_pets(VPLMS))
    texts = driver.tokenize(asked)
    batches = driver.form([Asked(number % VPLMS, text) for number, text in enumerate(texts)])
    repetitions = run.choose(7, 3)
    variants: dict[str, Callable[[], float]] = {
        EXACT: lambda: driver.rate(batches, Exactness.EXACT, None),
        COLD: lambda: driver.rate(batches, Exactness.MATERIALIZED, tables[COLD]),
        WARM: lambda: driver.rate(batches, Exactness.MATERIALIZED, tables[WARM]),
    }
    with run.steps("exact and materialised in turns", repetitions * len(variants)) as done:
        found = interleaved(variants, repetitions, done)
    rates = medians(found)
    return {
        "speedup": paired_ratio(found[COLD], found[EXACT]),
        "speedup_warm": paired_ratio(found[WARM], found[EXACT]),
        "texts_per_s_exact": rates[EXACT],
        "texts_per_s": rates[COLD],
        "texts_per_s_warm": rates[WARM],
        "batches": len(batches),
        "tokens_mean": mean(map(len, texts)),
        "rates": {name: list(values) for name, values in found.items()},
    }


def _bfloat16(run: Run, asked: Sequence[str], tables: Mapping[str, Path]) -> dict[str, Json]:
    """The same by an engine in bfloat16."""
    found = _speeds(run, Driver(Precision.BFLOAT16), asked, tables)
    return {key: found[key] for key in ("speedup", "speedup_warm", "texts_per_s_exact")}


def _hits(known: NDArray[np.int64], asked: NDArray[np.int64]) -> dict[str, Json]:
    """How many of the n-grams asked the table has, and of the others how many as bigrams: shares
    of all that were asked.
    """
    found = np.isin(asked, known)
    shorter = ~found & np.isin(bigrams_of(asked), bigrams_of(known))
    return {"hit_trigram": float(found.mean()), "hit_bigram": float(shorter.mean())}


def _sizes(run: Run, driver: Driver, halves: Halves, tables: Tables) -> list[Json]:
    """Speed and share found by size and form of the table."""
    texts = driver.tokenize(halves.held_out)
    batches = driver.form([Asked(number % VPLMS, text) for number, text in enumerate(texts)])
    wanted = [(dtype, mib) for dtype in RowDtype for mib in (*BUDGETS_MIB, None)]
    found: list[Json] = []
    with run.steps("sizes of tables", len(wanted)) as done:
        for dtype, mib in wanted:
            name = f"{dtype}-{mib}"
            budget = EVERYTHING if mib is None else mib * MIB
            place = tables.make(name, halves.train, dtype, budget)
            rates = [
                (
                    driver.rate(batches, Exactness.EXACT, None),
                    driver.rate(batches, Exactness.MATERIALIZED, place),
                )
                for _ in range(run.choose(3, 1))
            ]
            table = driver.rows.open(place)
            keys = keys_of_texts(tables.ids(halves.held_out), tables.encoder.outside)
            found.append(
                {
                    "dtype": str(dtype),
                    "bytes": table.manifest.bytes,
                    "rows": table.manifest.rows,
                    "found": float(np.isin(keys, table.keys).mean()),
                    "speedup": median(after / before for before, after in rates),
                }
            )
            done()
    return found


def _accuracy(run: Run, driver: Driver, frozen: Backbone) -> dict[str, Json]:
    """Shares of right answers of the same modules in both modes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(driver.settings.stream_count)
    try:
        trained = _trained(run, frozen)
    finally:
        torch.set_num_threads(threads)
    tasks: dict[str, Json] = {}
    shares: dict[Exactness, list[float]] = {exactness: [] for exactness in Exactness}
    for one in trained:
        module = driver.engine.load_module(one.spec, one.data)
        right = {
            exactness: one.right(driver.outputs(one, module, exactness)) for exactness in Exactness
        }
        for exactness, share in right.items():
            shares[exactness].append(share)
        tasks[one.name] = {str(exactness): share for exactness, share in right.items()}
    exact, materialized = (mean(shares[one]) for one in Exactness)
    return {
        "accuracy_exact": exact,
        "accuracy_materialized": materialized,
        "accuracy_loss_points": 100 * (exact - materialized),
        "tasks": tasks,
    }


def _trained(run: Run, frozen: Backbone) -> list[Trained]:
    kinds: tuple[Material, ...] = materials(
        frozen, sentences=run.choose(3_000, 600), documents=run.choose(1_000, 200)
    )
    found: list[Trained] = []
    with run.steps("training modules on exact states", 3 * len(kinds)) as done:
        for material in kinds:
            found += train(frozen, material, run.choose(4, 2), done)
    return found


if __name__ == "__main__":
    script("materialized", measure)
