"""The same requests through SMILE and through what people can use instead.

All programs are loaded at once, each in its own process and environment, and take turns. They are
given token ids, so tokenising is nobody's cost. The peers know one kind of module each and get 32
of it; SMILE answers every text with another one of 10,000 vPLMs of four kinds.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.harness import workload
from benchmarks.harness.command import Run, script
from benchmarks.harness.json_types import Figures, Json, number
from benchmarks.harness.repeat import interleaved, paired_ratio
from benchmarks.harness.worker import Worker
from benchmarks.peers.environments import python_of
from benchmarks.peers.requests import requests_of
from benchmarks.peers.runners.protocol import Requests
from smile.errors import FailedPrecondition

OURS = "smile"


@dataclass(frozen=True, slots=True)
class Variant:
    """One thing to measure: an operation of a runner in an environment (`OURS`: SMILE's own)."""

    key: str
    environment: str
    runner: str
    arguments: tuple[str, ...]
    operation: str

    @property
    def program(self) -> tuple[str, str, tuple[str, ...]]:
        """Variants of one program share its process."""
        return self.environment, self.runner, self.arguments


def _smile(key: str, precision: str, operation: str) -> Variant:
    return Variant(key, OURS, "smile_engine", (precision,), operation)


VARIANTS = (
    Variant("hf_one_model", "huggingface", "hugging_face", ("float32",), "run"),
    Variant("hf_sorted", "huggingface", "hugging_face", ("float32",), "run_sorted"),
    Variant("hf_bfloat16", "huggingface", "hugging_face", ("bfloat16",), "run"),
    Variant("peft_mixed", "huggingface", "peft_lora", (), "run_mixed"),
    Variant("peft_switch", "huggingface", "peft_lora", (), "run_switch"),
    Variant("adapters_batchsplit", "adapters", "adapter_hub", (), "run"),
    Variant("polylora", "polylora", "poly_lora", (), "run"),
    _smile("smile_float32", "float32", "run"),
    _smile("smile_float32_batch32", "float32", "run_small"),
    _smile("smile_float32_one_vplm", "float32", "run_one"),
    _smile("products_float32", "float32", "products"),
    _smile("smile_bfloat16", "bfloat16", "run"),
    _smile("smile_bfloat16_one_vplm", "bfloat16", "run_one"),
    _smile("products_bfloat16", "bfloat16", "products"),
)
PEERS = ("hf_one_model", "peft_mixed", "peft_switch", "adapters_batchsplit", "polylora")


def measure(run: Run) -> Figures:
    """The keys of the claim, texts per second unless they are ratios."""
    texts = workload.texts(run.choose(384, 192))
    requests = requests_of(texts, vplms=run.choose(10_000, 1_000))
    repetitions = run.choose(5, 3)
    with tempfile.TemporaryDirectory(prefix="smile-bench-") as folder, ExitStack() as stack:
        workers, reasons = _start(run, requests, Path(folder), stack)
        usable = [variant for variant in VARIANTS if variant.program in workers]
        with run.steps("answering in turns", repetitions * len(usable)) as done:
            answers = interleaved(
                {
                    variant.key: partial(workers[variant.program].ask, variant.operation)
                    for variant in usable
                },
                repetitions,
                done,
            )
        about = {f"{runner} {' '.join(rest)}".strip(): workers[environment, runner, rest].about
                 for environment, runner, rest in workers}  # fmt: skip
    rates = {
        key: [len(texts) / _seconds(answer) for answer in found] for key, found in answers.items()
    }
    return {
        **figures(rates),
        "vplms": requests.vplms,
        "texts": len(texts),
        "tokens_mean": sum(map(len, requests.ids)) / len(texts),
        "repetitions": repetitions,
        "gflops_float32": _median_of(answers.get("products_float32"), "gflops"),
        "gflops_bfloat16": _median_of(answers.get("products_bfloat16"), "gflops"),
        "not_measured": reasons,
        "programs": about,
        "rates": dict(rates),
    }


def figures(rates: Mapping[str, Sequence[float]]) -> dict[str, Json]:
    """The promised keys from the rates of each variant, one per repetition; null where one of
    those compared was not measured.
    """
    ratio = partial(_ratio, rates)
    measured = [key for key in PEERS if key in rates]
    best = max(measured, key=lambda key: median(rates[key]), default="")
    return {
        **{
            variant.key: median(rates[variant.key]) if variant.key in rates else None
            for variant in VARIANTS
            if not variant.key.startswith("products")
        },
        "speedup_vs_hf": ratio("smile_float32", "hf_one_model"),
        "speedup_vs_hf_sorted": ratio("smile_float32", "hf_sorted"),
        "speedup_vs_best_peer": ratio("smile_float32", best),
        "best_peer": best or None,
        "speedup_bfloat16_vs_hf": ratio("smile_bfloat16", "hf_one_model"),
        "speedup_bfloat16_vs_hf_bfloat16": ratio("smile_bfloat16", "hf_bfloat16"),
        "roofline_float32": ratio("smile_float32", "products_float32"),
        "roofline_bfloat16": ratio("smile_bfloat16", "products_bfloat16"),
        "mixed_vs_one_float32": ratio("smile_float32", "smile_float32_one_vplm"),
        "mixed_vs_one_bfloat16": ratio("smile_bfloat16", "smile_bfloat16_one_vplm"),
    }


def _ratio(rates: Mapping[str, Sequence[float]], above: str, below: str) -> float | None:
    if above not in rates or below not in rates:
        return None
    return paired_ratio(rates[above], rates[below])


def _start(
    run: Run, requests: Requests, folder: Path, stack: ExitStack
) -> tuple[dict[tuple[str, str, tuple[str, ...]], Worker], dict[str, str]]:
    """The programs that could be started, and why the others could not."""
    path = folder / "requests.json"
    path.write_text(json.dumps(asdict(requests)), encoding="utf-8")
    workers: dict[tuple[str, str, tuple[str, ...]], Worker] = {}
    reasons: dict[str, str] = {}
    programs = list(dict.fromkeys(variant.program for variant in VARIANTS))
    with run.steps("loading programs", len(programs)) as done:
        for program in programs:
            environment, runner, arguments = program
            log = folder / f"{runner}-{'-'.join(arguments)}.log"
            try:
                python = sys.executable if environment == OURS else str(python_of(environment))
                module = f"benchmarks.peers.runners.{runner}"
                worker = Worker((python, "-m", module, str(path), *arguments), log=log)
                stack.enter_context(worker).await_ready()
            except FailedPrecondition as error:
                reasons[f"{runner} {' '.join(arguments)}".strip()] = error.message
                run.say(f"{runner} {' '.join(arguments)} is left out: {error.message}")
            else:
                workers[program] = worker
            done()
    return workers, reasons


def _seconds(answer: Mapping[str, Json]) -> float:
    seconds = number(answer["seconds"])
    assert seconds, "a runner tells how long it took"
    return seconds


def _median_of(answers: Sequence[Mapping[str, Json]] | None, key: str) -> float | None:
    values = [number(answer[key]) for answer in answers or ()]
    return median(value for value in values if value is not None) if values else None


if __name__ == "__main__":
    script("peers", measure)
