"""The device thread: takes a batch, computes it, tells the event loop, at its own pace.

Nothing that a batch does ends the thread. A batch that fails is computed again part by part, so
that a poisoned module fails only the requests that asked for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from services.processor.dispatch import Dispatch, Taken, Work
from services.processor.requests import Answered, Batch, Failed, FloatArray, Outcome, Part, Ride
from smile.errors import Internal, SmileError
from smile.logs import get_logger

Module = TypeVar("Module")
Module_contra = TypeVar("Module_contra", contravariant=True)

PAUSE_S = 0.1  # after a failure outside of a batch, so that it cannot spin


class Computer(Protocol[Module_contra]):
    """What computes a batch: the outputs of every chunk, one array per text."""

    def run(
        self, batch: Batch, modules: Sequence[Module_contra]
    ) -> list[tuple[FloatArray, ...]]: ...


@dataclass(frozen=True, slots=True)
class Report(Generic[Module]):
    """What the thread has to tell: what it took, how that ended, and how long it computed."""

    taken: Taken[Module]
    outcomes: tuple[Outcome, ...]
    compute_s: float


class DeviceThread(Generic[Module]):
    """One thread that computes everything.

    Args:
        dispatch: Where batches come from.
        computer: The engine.
        tell: Called from the thread with what the event loop must hear of; must not block.
    """

    def __init__(
        self,
        dispatch: Dispatch[Module],
        computer: Computer[Module],
        tell: Callable[[Report[Module]], None],
    ) -> None:
        self._dispatch = dispatch
        self._computer = computer
        self._tell = tell
        self._batches = 0
        self._thread = threading.Thread(target=self._live, name="device", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread to end; it does once its dispatch is closed and its batch is over."""
        self._thread.join(timeout_s)

    def _live(self) -> None:
        while True:
            try:
                if (taken := self._dispatch.take()) is None:
                    return
                self._serve(taken)
            except Exception:
                get_logger().exception("the device thread failed outside of a batch")
                time.sleep(PAUSE_S)

    def _serve(self, taken: Taken[Module]) -> None:
        if taken.work is None:
            self._tell(Report(taken, (), 0.0))
            return
        if taken.wanted or taken.failed:  # what others wait for does not wait for the batch
            self._tell(Report(Taken(None, taken.wanted, taken.failed), (), 0.0))
        started = time.monotonic()
        try:
            outcomes = self._compute(taken.work)
        finally:
            self._dispatch.release(taken.work)
        assert len(outcomes) == len(taken.work.batch.chunks), "one outcome per chunk"
        done = Taken(taken.work, (), ())
        self._tell(Report(done, tuple(outcomes), time.monotonic() - started))

    def _compute(self, work: Work[Module]) -> list[Outcome]:
        try:
            return self._answered(work.batch, work.modules)
        except Exception as error:
            if len(work.batch.parts) == 1:
                return _failed(work.batch.parts[0], error)
            get_logger().warning("a batch failed; its parts are computed alone")
        return [
            outcome
            for part, module in zip(work.batch.parts, work.modules, strict=True)
            for outcome in self._compute_alone(work.batch.backbone, part, module)
        ]

    def _compute_alone(self, backbone: str, part: Part, module: Module) -> list[Outcome]:
        try:
            return self._answered(Batch(backbone, (part,)), (module,))
        except Exception as error:
            return _failed(part, error)

    def _answered(self, batch: Batch, modules: Sequence[Module]) -> list[Outcome]:
        started = time.monotonic()
        outputs = self._computer.run(batch, modules)
        self._batches += 1
        ride = Ride(
            number=self._batches,
            started=started,
            compute_s=time.monotonic() - started,
            texts=batch.texts,
            vplms=len(batch.parts),
        )
        return [
            Answered(chunk, values, ride)
            for chunk, values in zip(batch.chunks, outputs, strict=True)
        ]


def _failed(part: Part, error: Exception) -> list[Outcome]:
    if not isinstance(error, SmileError):
        get_logger().error("a batch failed", exc_info=error, digest=part.module.digest)
        error = Internal("the batch failed inside SMILE; the processor's log has the cause")
    return [Failed(chunk, error) for chunk in part.chunks]
