"""What was promised: a bound for each headline figure."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.harness.json_types import Figures, Json, number


class Bound(enum.StrEnum):
    """From which side a target bounds."""

    AT_LEAST = ">="
    AT_MOST = "<="


@dataclass(frozen=True, slots=True)
class Target:
    """A bound on one key of a benchmark's figures."""

    key: str
    bound: Bound
    value: float

    def met(self, measured: Json) -> bool | None:
        """Whether a figure meets the target; None where nothing was measured."""
        value = number(measured)
        if value is None:
            return None
        return value >= self.value if self.bound is Bound.AT_LEAST else value <= self.value


def at_least(key: str, value: float) -> Target:
    return Target(key, Bound.AT_LEAST, value)


def at_most(key: str, value: float) -> Target:
    return Target(key, Bound.AT_MOST, value)


TARGETS: Mapping[str, tuple[Target, ...]] = {
    "density": (
        at_least("vplms", 10_000),
        at_least("throughput_ratio", 0.95),
        at_most("register_ratio", 1.5),
        at_most("register_ms_last", 5.0),
    ),
    "peers": (
        at_least("speedup_vs_hf", 2.0),
        at_least("speedup_bfloat16_vs_hf", 4.0),
        at_least("speedup_vs_best_peer", 2.0),
        at_least("roofline_float32", 0.8),
        at_least("roofline_bfloat16", 0.6),
    ),
    "cliff": (at_most("p95_ratio_8x", 1.5),),
    "pipeline": (at_least("speedup", 1.25), at_least("speedup_materialized", 1.25)),
    "materialized": (
        at_least("speedup", 1.4),
        at_least("speedup_warm", 1.75),
        at_most("accuracy_loss_points", 0.5),
    ),
    "skip_sweep": (at_most("loss_points_included", 0.5),),
    "skip_speed": (),
    "domains": (),
    "training_states": (),
    "smile_demo": (
        at_least("achieved_ratio", 0.99),
        at_most("p99_ms", 250.0),
        at_least("achieved_ratio_materialized", 0.99),
        at_most("p99_ms_materialized", 250.0),
    ),
    "fairness": (at_most("p99_ratio", 1.5),),
    "rpc": (at_least("efficiency", 0.85),),
    "storage": (
        at_most("bytes_per_vplm_bert_base", 1_300_000),
        at_least("saving", 0.99),
        at_least("create_per_second", 100),
    ),
    "index": (at_most("open_s_1m", 1.0),),
    "training": (
        at_least("speedup_vs_full", 3.0),
        at_least("speedup_vs_full_documents", 3.0),
        at_least("speedup_vs_peft", 1.8),
        at_least("speedup_vs_peft_documents", 1.8),
        at_least("memory_saving", 0.8),
        at_least("memory_saving_documents", 0.8),
        at_most("accuracy_loss", 0.005),
        at_most("accuracy_loss_documents", 0.005),
    ),
    "eviction": (),
    "forming": (),
}


def judged(name: str, figures: Figures) -> list[Json]:
    """The targets of a benchmark beside its figures, as JSON."""
    return [
        {
            "key": target.key,
            "bound": str(target.bound),
            "value": target.value,
            "measured": figures.get(target.key),
            "met": target.met(figures.get(target.key)),
        }
        for target in TARGETS.get(name, ())
    ]
