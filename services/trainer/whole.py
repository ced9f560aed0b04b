"""Jobs of method full: what they train, what that takes, and who may.

Every weight of the backbone trains. That takes about a hundred times what a module takes, so it is
known and checked before a worker begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from smile.errors import FailedPrecondition, QuotaExceeded
from smile.limits import (
    CHECKPOINT_BYTES_MAX,
    FULL_BYTES_MAX,
    FULL_TRAINING_BYTES_MAX,
    TENANT_FULL_JOBS_MAX,
)
from smile.model import layout
from smile.model.specs import BackboneShape, ModuleSpec, PetKind, PetSpec, Task
from smile.names import TenantId
from smile.resources import HyperParameters, Method, Optimizer, TrainingJob

WHOLE = PetSpec(PetKind.FULL, 0)
FULL_MODEL_TOO_LARGE = "FULL_MODEL_TOO_LARGE"
FULL_JOBS_MAX = "FULL_JOBS_MAX"
FULL_JOBS_RETRY_S = 60.0

FLOAT_BYTES = 4
STATE_BYTES: Mapping[Optimizer, int] = {  # of each weight
    Optimizer.ADAMW: 8,
    Optimizer.ADAM: 8,
    Optimizer.SGD: 4,
    Optimizer.ADAFACTOR: 0,  # a row and a column of each matrix
}
TOKENS_AT_ONCE = 1024  # back-propagated, where a batch may be taken in parts
KEPT_WIDTHS = 10  # of the hidden width, of each token and layer, for the way back
KEPT_WIDE = 3  # of the intermediate width


@dataclass(frozen=True, slots=True)
class FullLimits:
    """What an operator lets whole models have.

    Attributes:
        jobs_max: Of a tenant, that have not ended; 0: nobody trains whole models.
        memory_bytes_max: Of a worker, for one.
    """

    jobs_max: int = TENANT_FULL_JOBS_MAX
    memory_bytes_max: int = FULL_TRAINING_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Needs:
    """What one training of a whole model takes.

    Attributes:
        version_bytes: Of what comes of it, for good.
        checkpoint_bytes: Stored beside while it runs.
        memory_bytes: Of the worker, at most: while a checkpoint is made.
    """

    version_bytes: int
    checkpoint_bytes: int
    memory_bytes: int

    @classmethod
    def of(cls, spec: ModuleSpec, shape: BackboneShape, values: HyperParameters) -> Needs:
        """Of a job whose spec is `spec_of`'s.

        In memory are weights, gradients, the optimizer's state and the best epoch; for a checkpoint
        copies of weights and state, the file, and the file behind its digest.
        """
        tensors = layout.tensors(spec, shape).values()
        sizes = list(map(layout.elements, tensors))
        weights = sum(sizes)
        version = layout.bytes_total(spec, shape)
        state = STATE_BYTES[values.optimizer] * weights
        checkpoint = FLOAT_BYTES * weights + state + version
        training = 2 * FLOAT_BYTES * weights + state + version
        copies = FLOAT_BYTES * weights + state
        updates = 2 * FLOAT_BYTES * max(sizes)  # of one tensor, while its step is taken
        memory = training + copies + 2 * checkpoint + updates + _activations(spec, shape, values)
        return cls(version, checkpoint, memory)


def spec_of(job: TrainingJob, spec: ModuleSpec) -> ModuleSpec:
    """The spec of the version that a job makes of a vPLM of `spec`."""
    return replace(spec, pet=WHOLE) if job.method is Method.FULL else spec


def check_fits(needs: Needs, limits: FullLimits) -> None:
    """Raises `FailedPrecondition` (FULL_MODEL_TOO_LARGE) where no worker can do it."""
    if limits.jobs_max == 0:
        raise FailedPrecondition(
            "this platform does not train whole models: the operator sets "
            "SMILE_TRAINER_FULL_JOBS_MAX",
            reason=FULL_MODEL_TOO_LARGE,
        )
    bounds = (
        ("of a worker's memory", needs.memory_bytes, limits.memory_bytes_max),
        ("as a version", needs.version_bytes, FULL_BYTES_MAX),
        ("as a checkpoint", needs.checkpoint_bytes, CHECKPOINT_BYTES_MAX),
    )
    for what, value, limit in bounds:
        if value > limit:
            raise FailedPrecondition(
                f"training this whole model takes {value} bytes {what}, at most {limit} are there: "
                "train its module (method pet), with an optimizer that keeps less, or tell the "
                "operator",
                reason=FULL_MODEL_TOO_LARGE,
                metadata={"limit": str(limit), "value": str(value)},
            )


def check_stored(tenant: TenantId, needs: Needs, used: int, allowed: int) -> None:
    """Raises `QuotaExceeded` where a tenant has no room for what a job stores, before it begins."""
    wanted = needs.version_bytes + needs.checkpoint_bytes
    if used + wanted > allowed:
        raise QuotaExceeded(
            f"training a whole model stores {wanted} bytes, {needs.version_bytes} of them for "
            f"good; tenants/{tenant} may store {allowed} bytes and {used} are taken",
            metadata={
                "limit_name": "quota_bytes",
                "limit": str(allowed),
                "used": str(used),
                "value": str(wanted),
            },
        )


def jobs_exceeded(tenant: TenantId, going: int, limits: FullLimits) -> QuotaExceeded:
    """That as many jobs of method full of a tenant have not ended as may."""
    return QuotaExceeded(
        f"tenants/{tenant} has {going} jobs of method full that have not ended, at most "
        f"{limits.jobs_max} may be; wait for one or cancel it",
        reason=FULL_JOBS_MAX,
        metadata={"limit": str(limits.jobs_max), "value": str(going)},
        retry_after=FULL_JOBS_RETRY_S,
    )


def _activations(spec: ModuleSpec, shape: BackboneShape, values: HyperParameters) -> int:
    """Bytes that the way back needs of the texts that are computed at once."""
    longest = min(values.tokens_max or shape.tokens_max, shape.tokens_max)
    tokens = max(TOKENS_AT_ONCE, longest)
    if spec.head.task is Task.EMBEDDING:  # a batch is one, and pairs have two texts
        tokens = 2 * values.batch_size * longest
    width = KEPT_WIDTHS * shape.hidden + KEPT_WIDE * shape.intermediate
    return FLOAT_BYTES * tokens * width * shape.layers
