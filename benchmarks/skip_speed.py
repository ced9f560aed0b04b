"""How fast materialised answers are, by boundary, width and policy for missing n-grams.

For each local encoder of the folder that `SMILE_BENCH_ENCODERS` names: texts a second over those of
exact answers to the same batches, in turns, with every row computed, with a table of the training
documents under the policy that the encoder was distilled for, and where missing rows are computed
with a table that has all. Needs an idle machine; `benchmarks.skip_sweep` tells how right they are.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness.command import Run, script
from benchmarks.harness.encoders import (
    BOUNDARY_MAX,
    Encoder,
    First,
    Standing,
    encoders,
    hits,
    ids_of,
    loaded,
)
from benchmarks.harness.engine import mixed_pets, settings, side_by_side
from benchmarks.harness.fleet import BACKBONE, LABELS
from benchmarks.harness.identity import random_tensors
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.repeat import interleaved, medians, paired_ratio
from benchmarks.harness.standin import Halves, backbone
from smile.model import weights
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.loaded import LoadedModule
from smile.model.skip.policy import MissPolicy
from smile.model.specs import HeadSpec, ModuleSpec, Task
from smile.model.tokenizer import TokenizedText

VPLMS = 64
BATCH_TEXTS = 32
EXACT, COMPUTED, LOOKED_UP, ALL_FOUND = "exact", "computed", "looked_up", "all_found"


class Asking:
    """Held-out texts in batches for many modules, answered exactly or by what stands in."""

    def __init__(self, engine: BatchedEngine, texts: Sequence[str]) -> None:
        self._engine = engine
        modules = _modules(engine)
        tokens = engine.backbone.tokenizer.encode(texts, truncate=True)
        asked = [(modules[n % VPLMS], text) for n, text in enumerate(tokens)]
        self._batches = [asked[at : at + BATCH_TEXTS] for at in range(0, len(asked), BATCH_TEXTS)]
        self.texts = len(asked)

    def rate(self, standing: Standing | None) -> float:
        """Texts a second, putting together and looking up included; None: exactly."""
        started = time.perf_counter()
        side_by_side(settings().stream_count, partial(self._answer, standing), self._batches)
        return self.texts / (time.perf_counter() - started)

    def _answer(
        self, standing: Standing | None, asked: Sequence[tuple[LoadedModule, TokenizedText]]
    ) -> None:
        batch = MixedBatch.build(asked)
        if standing is None:
            self._engine.run(batch)
        else:
            standing.answer(self._engine, batch)


def measure(run: Run) -> Figures:
    """One row for each encoder."""
    halves = Halves.load()
    order = np.random.default_rng(0).permutation(len(halves.held_out))[: run.choose(768, 128)]
    asked = [halves.held_out[number] for number in order]
    asking = Asking(BatchedEngine.of(backbone()), asked)
    found = list(encoders())
    rows: list[Json] = []
    with (
        tempfile.TemporaryDirectory(prefix="smile-bench-tables-") as made,
        run.steps("encoders, exactly and materialised in turns", len(found)) as done,
    ):
        for encoder in found:
            rows.append(
                _measured(run, encoder, asking, Halves(halves.train, tuple(asked)), Path(made))
            )
            done()
    return {"vplms": VPLMS, "texts": asking.texts, "encoders": rows}


def _measured(
    run: Run, encoder: Encoder, asking: Asking, halves: Halves, folder: Path
) -> dict[str, Json]:
    known = encoder.table(folder, halves.train, encoder.policy)
    table = First(known, known.manifest.rows)
    ways: dict[str, Standing | None] = {
        EXACT: None,
        COMPUTED: Standing.alone(encoder),
        LOOKED_UP: Standing.over(encoder, encoder.policy, table),
    }
    if encoder.policy is MissPolicy.COMPUTE:
        warm = encoder.table(folder, [*halves.train, *halves.held_out], encoder.policy)
        ways[ALL_FOUND] = Standing.over(encoder, encoder.policy, First(warm, warm.manifest.rows))
    variants: dict[str, Callable[[], float]] = {
        name: partial(asking.rate, standing) for name, standing in ways.items()
    }
    asking.rate(ways[LOOKED_UP])  # maps what it reads
    found = interleaved(variants, run.choose(5, 2), lambda: None)
    return {
        **encoder.facts,
        "policy": str(encoder.policy),
        "rows": table.rows,
        "table_bytes": known.manifest.bytes,
        **hits(table, ids_of(halves.held_out), encoder.rows.outside),
        **{
            f"speedup_{name}": paired_ratio(found[name], found[EXACT]) if name in found else None
            for name in (COMPUTED, LOOKED_UP, ALL_FOUND)
        },
        "texts_per_s": medians(found),
    }


def _modules(engine: BatchedEngine) -> list[LoadedModule]:
    """Of random weights and mixed kinds, each from the same layer up."""
    shape, made = engine.backbone.shape, []
    for number, pet in enumerate(mixed_pets(VPLMS)):
        spec = ModuleSpec(
            backbone=BACKBONE,
            backbone_digest=engine.backbone.digest,
            pet=replace(pet, first_layer=BOUNDARY_MAX).placed(shape),
            head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS[: 2 + number % 4]),
        )
        data = weights.encode(random_tensors(spec, shape, number), spec)
        made.append(loaded(engine, spec, data))
    return made


if __name__ == "__main__":
    script("skip_speed", measure)
