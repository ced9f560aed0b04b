"""What the same models would have cost as full ones: sums over what storage knows, and assumptions.

Nothing here is measured while it is shown. Bytes are known; for training and device memory the
assumptions have names, and callers may make their own.
"""

from __future__ import annotations

from dataclasses import dataclass

from smile.accounting import MICROSECONDS
from smile.resources import Usage

# How many times as long training a whole model takes: the least that `benchmarks.training` measured
# (`speedup_vs_full_documents`, MiniLM on two cores; 5.7 for sentences). The paper's own was 1.31.
FULL_TRAINING_FACTOR = 4.2


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is taken for granted.

    Attributes:
        full_training_factor: Times as long as training module and head that training the whole
            model takes; depends on machine, model and texts, see `benchmarks.training`.
        module_memory_factor: Bytes in memory for each byte stored: modules are stored as float16
            and computed as float32.
    """

    full_training_factor: float = FULL_TRAINING_FACTOR
    module_memory_factor: float = 2.0


@dataclass(frozen=True, slots=True)
class Savings:
    """What a tenant's models take here, and as full models.

    Attributes:
        model_bytes: All versions of all vPLMs stored here.
        full_model_bytes: One copy of each vPLM's whole model, float32.
        training_seconds: That workers held jobs on the days asked for.
        full_training_seconds: By `full_training_factor`; those that trained whole models, as they
            are.
        memory_bytes: Device memory that holds every vPLM: each backbone once, and all modules.
        full_memory_bytes: The same with a whole model for each.
        assumptions: What was taken for granted.
    """

    model_bytes: int
    full_model_bytes: int
    training_seconds: float
    full_training_seconds: float
    memory_bytes: int
    full_memory_bytes: int
    assumptions: Assumptions

    @classmethod
    def of(cls, usage: Usage, assumptions: Assumptions | None = None) -> Savings:
        """Of a tenant's usage with all its rows."""
        taken = assumptions or Assumptions()
        rows = usage.vplms
        full = sum(row.full_model_bytes for row in rows)
        backbones = {row.backbone: row.backbone_bytes for row in rows}
        modules = sum(row.serving_bytes for row in rows)
        seconds = sum(day.counts.training_us for day in usage.days) / MICROSECONDS
        whole = sum(day.counts.full_us for day in usage.days) / MICROSECONDS
        return cls(
            model_bytes=sum(row.size_bytes for row in rows),
            full_model_bytes=full,
            training_seconds=seconds,
            full_training_seconds=(seconds - whole) * taken.full_training_factor + whole,
            memory_bytes=sum(backbones.values()) + int(modules * taken.module_memory_factor),
            full_memory_bytes=full,
            assumptions=taken,
        )


def saved(here: float, full: float) -> str:
    """How much less: `98.97 %`; '' where there is nothing to compare with."""
    return f"{100 * (1 - here / full):.2f} %" if full > 0 else ""
