"""The two lanes that work on batches: one thread prepares them, one or several compute them.

The prepare thread takes what `Dispatch` plans, makes it ready for the device, and hands it over;
a device thread does nothing but compute. On a CPU there is one of these for each core (`streams`):
two batches on a core each are done sooner than one after the other on both, since cores that share
a batch wait for each other between any two products. Beside them as many others compute what gives
way (bulk): batches of tenants that ask for more than a batch holds. They are computed at low
priority, so that the system takes the processor from one for as long as any other batch needs it,
in the middle of a product, which no order of batches could do. Nothing a batch does ends a thread.
A batch that fails, in preparing or in computing, is done again part by part, so that a poisoned
module fails only the requests that asked for it. Modules are held from plan to answer.
"""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from services.processor.lanes.dispatch import Dispatch, Taken, Work
from services.processor.lanes.handoff import Handoff, Load
from services.processor.lanes.trace import Facts, Lane, Trace
from services.processor.requests import (
    Answered,
    Batch,
    Chunk,
    Computed,
    Failed,
    Materialized,
    Outcome,
    Part,
    Ride,
)
from smile.errors import Internal, SmileError
from smile.logs import get_logger

Module = TypeVar("Module")
Module_contra = TypeVar("Module_contra", contravariant=True)
Prepared = TypeVar("Prepared")

PAUSE_S = 0.1  # after a failure outside of a batch, so that it cannot spin


class Computer(Protocol[Module_contra, Prepared]):
    """What computes batches, in two steps that two threads do."""

    def prepare(self, batch: Batch, modules: Sequence[Module_contra]) -> Prepared:
        """Everything that can be done before the device is free; `modules` are its parts'."""
        ...

    def compute(self, prepared: Prepared) -> list[Computed]:
        """What came of every chunk of the batch."""
        ...

    def give_way(self) -> None:
        """What the calling thread computes from now on gives way to all other threads."""
        ...


@dataclass(frozen=True, slots=True)
class Report(Generic[Module]):
    """What a lane has to tell: what was taken, how that ended, and how long it took.

    Attributes:
        steady: Whether computing never had to give way to others.
    """

    taken: Taken[Module]
    outcomes: tuple[Outcome, ...] = ()
    prepare_s: float = 0.0
    compute_s: float = 0.0
    steady: bool = True


@dataclass(frozen=True, slots=True)
class _Piece(Generic[Module, Prepared]):
    """A batch, or one part of a batch that failed, ready to be computed."""

    number: int
    batch: Batch
    modules: tuple[Module, ...]
    prepared: Prepared

    def without(self, gone: Sequence[Failed]) -> tuple[Batch, tuple[Module, ...]] | None:
        """What is to be computed if some chunks are not; None where nothing is left."""
        out = {failed.chunk.number for failed in gone}
        chunks = [chunk for chunk in self.batch.chunks if chunk.number not in out]
        if not chunks:
            return None
        modules = {
            part.module: module for part, module in zip(self.batch.parts, self.modules, strict=True)
        }
        batch = Batch.of(self.batch.backbone, chunks)
        return batch, tuple(modules[part.module] for part in batch.parts)


@dataclass(frozen=True, slots=True)
class _Job(Generic[Module, Prepared]):
    """One work on its way to the device: a single piece unless preparing it failed."""

    work: Work[Module]
    pieces: tuple[_Piece[Module, Prepared], ...] = ()
    failed: tuple[Failed, ...] = ()
    prepare_s: float = 0.0


@dataclass(frozen=True, slots=True)
class _Took:
    """How long a work took; see `Report`."""

    prepare_s: float = 0.0
    compute_s: float = 0.0
    steady: bool = True


NO_TIME = _Took()


class Lanes(Generic[Module, Prepared]):
    """The prepare thread and the device threads, as many as the hand-off has streams.

    Args:
        dispatch: Where batches come from.
        computer: The engine.
        handoff: Between the two; owned from here on.
        trace: Told what was done when.
    """

    def __init__(
        self,
        dispatch: Dispatch[Module],
        computer: Computer[Module, Prepared],
        handoff: Handoff[_Job[Module, Prepared]],
        trace: Trace,
    ) -> None:
        self._dispatch = dispatch
        self._computer = computer
        self._handoff = handoff
        self._trace = trace
        self._tell: Callable[[Report[Module]], None] = _unheard
        self._numbers = itertools.count(1)
        self._threads = tuple(
            threading.Thread(target=_living, args=(step, end), name=name, daemon=True)
            for name, step, end in (
                ("prepare", self._prepare_next, self._handoff.close),
                *(
                    (f"device-{stream}", self._compute_next, _nothing)
                    for stream in range(handoff.streams)
                ),
                *(
                    (f"bulk-{stream}", self._compute_next_bulk, _nothing)
                    for stream in range(handoff.bulk_streams)
                ),
            )
        )

    @property
    def alive(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def start(self, tell: Callable[[Report[Module]], None]) -> None:
        """Start the threads. `tell` is called from any with what the event loop must hear of,
        and must not block.
        """
        self._tell = tell
        for thread in self._threads:
            thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the threads to end: once the dispatch is closed and what was taken is told."""
        until = time.monotonic() + timeout_s
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _prepare_next(self) -> bool:
        """Form, prepare and hand over one batch. Whether there may be another."""
        self._handoff.wait_turn()
        if (taken := self._dispatch.take()) is None:
            return False
        if taken.wanted or taken.failed:  # what others wait for does not wait for the batch
            self._report(Report(Taken(None, taken.wanted, taken.failed)))
        if taken.work is not None:
            self._hand_over(taken.work)
        return True

    def _hand_over(self, work: Work[Module]) -> None:
        try:
            # Others' batches do not wait while bulk is prepared: who computes it does that, too.
            job: _Job[Module, Prepared] = _Job(work) if work.bulk else self._job(work)
            load = Load(work.batch.tokens, job.prepare_s, work.predicted_s)
            self._handoff.put(job, load, bulk=work.bulk)
        except BaseException as error:
            self._finish(work, [], error)

    def _job(self, work: Work[Module]) -> _Job[Module, Prepared]:
        started = time.monotonic()
        pieces, failed = self._prepared(work)
        ended = time.monotonic()
        self._trace_prepared(work, pieces, started, ended)
        return _Job(work, tuple(pieces), tuple(failed), ended - started)

    def _prepared(self, work: Work[Module]) -> tuple[list[_Piece[Module, Prepared]], list[Failed]]:
        """The whole batch in one piece; where that fails, what can be prepared of its parts."""
        try:
            return [self._piece(work.batch, work.modules)], []
        except BaseException as error:
            if len(work.batch.parts) == 1:
                return [], _failed(work.batch.parts[0], error)
            get_logger().warning("preparing a batch failed; its parts are prepared alone")
        pieces: list[_Piece[Module, Prepared]] = []
        failed: list[Failed] = []
        for batch, modules in _alone(work.batch, work.modules):
            try:
                pieces.append(self._piece(batch, modules))
            except BaseException as error:
                failed += _failed(batch.parts[0], error)
        return pieces, failed

    def _piece(self, batch: Batch, modules: tuple[Module, ...]) -> _Piece[Module, Prepared]:
        prepared = self._computer.prepare(batch, modules)
        return _Piece(next(self._numbers), batch, modules, prepared)

    def _compute_next(self) -> bool:
        """Compute one handed-over batch. Whether there may be another."""
        if (job := self._handoff.take()) is None:
            return False
        self._compute(job, self._ended)
        return True

    def _compute_next_bulk(self) -> bool:
        """The same for a batch that gives way to others."""
        self._computer.give_way()
        if (job := self._handoff.take_bulk()) is None:
            return False
        try:
            job = self._job(job.work)
        except BaseException as error:
            self._handoff.ended_bulk()
            self._finish(job.work, [], error)
        else:
            self._compute(job, self._handoff.ended_bulk)
        return True

    def _ended(self) -> bool:
        self._handoff.ended()
        return True

    def _compute(self, job: _Job[Module, Prepared], ended: Callable[[], bool]) -> None:
        started = time.monotonic()
        outcomes: list[Outcome] = list(job.failed)
        error: BaseException | None = None
        try:
            for piece in job.pieces:
                outcomes += self._computed(piece)
        except BaseException as caught:
            error = caught
        finally:
            compute_s = time.monotonic() - started
            steady = ended()
        self._finish(job.work, outcomes, error, _Took(job.prepare_s, compute_s, steady))

    def _computed(self, piece: _Piece[Module, Prepared]) -> list[Outcome]:
        gone = self._dispatch.gone(piece.batch)
        if 2 * sum(failed.chunk.tokens for failed in gone) < piece.batch.tokens:
            return self._computed_whole(piece)  # the few are computed for nobody
        outcomes: list[Outcome] = list(gone)
        if (left := piece.without(gone)) is not None:
            outcomes += self._computed_whole(self._piece(*left))
        return outcomes

    def _computed_whole(self, piece: _Piece[Module, Prepared]) -> list[Outcome]:
        try:
            return self._answered(piece)
        except BaseException as error:
            if len(piece.batch.parts) == 1:
                return list(_failed(piece.batch.parts[0], error))
            get_logger().warning("a batch failed; its parts are computed alone")
        outcomes: list[Outcome] = []
        for batch, modules in _alone(piece.batch, piece.modules):
            try:
                outcomes += self._answered(self._piece(batch, modules))
            except BaseException as error:
                outcomes += _failed(batch.parts[0], error)
        return outcomes

    def _answered(self, piece: _Piece[Module, Prepared]) -> list[Outcome]:
        started = time.monotonic()
        outputs = self._computer.compute(piece.prepared)
        ended = time.monotonic()
        batch = piece.batch
        texts, vplms = batch.texts, len(batch.parts)
        if self._trace.on:
            facts = Facts(batch=piece.number, vplms=vplms, texts=texts, tokens=batch.tokens)
            self._trace.span(Lane.COMPUTE, started, ended, facts)
        ride = Ride(piece.number, started, ended - started, texts, vplms)
        return [
            _outcome(chunk, values, ride)
            for chunk, values in zip(batch.chunks, outputs, strict=True)
        ]

    def _finish(
        self,
        work: Work[Module],
        outcomes: list[Outcome],
        error: BaseException | None,
        took: _Took = NO_TIME,
    ) -> None:
        """Let go of the modules and tell how the work ended; `error` is told to what has no
        outcome.
        """
        if error is not None:
            known = {outcome.chunk.number for outcome in outcomes}
            left = [failed for part in work.batch.parts for failed in _failed(part, error)]
            outcomes = outcomes + [one for one in left if one.chunk.number not in known]
        try:
            self._dispatch.release(work)
        finally:
            times = took.prepare_s, took.compute_s, took.steady
            self._report(Report(Taken(work, (), ()), tuple(outcomes), *times))
        assert len(outcomes) == len(work.batch.chunks), "one outcome per chunk"

    def _report(self, report: Report[Module]) -> None:
        try:
            self._tell(report)
        except BaseException as error:
            get_logger().error("the event loop was not told of a batch", exception=_told(error))

    def _trace_prepared(
        self,
        work: Work[Module],
        pieces: Sequence[_Piece[Module, Prepared]],
        started: float,
        ended: float,
    ) -> None:
        if not self._trace.on:
            return
        batch = work.batch
        number = pieces[0].number if pieces else 0
        facts = Facts(batch=number, vplms=len(batch.parts), texts=batch.texts, tokens=batch.tokens)
        self._trace.prepared([part.module for part in batch.parts], started, ended, facts)


def _living(step: Callable[[], bool], end: Callable[[], None]) -> None:
    """Repeat `step` until it says that there is nothing more, whatever it raises; then `end`.

    Not only `Exception` is caught: panics of native libraries are none, and a lane that ends takes
    the service with it.
    """
    while True:
        try:
            if not step():
                end()
                return
        except BaseException as error:
            get_logger().error("a lane failed outside of a batch", exception=_told(error))
            time.sleep(PAUSE_S)


def _unheard(report: Report[Module]) -> None:
    raise AssertionError("the lanes have not been started")


def _nothing() -> None:
    """The device lane has nobody behind it."""


def _outcome(chunk: Chunk, computed: Computed, ride: Ride) -> Outcome:
    match computed:
        case SmileError():
            return Failed(chunk, computed)
        case Materialized(outputs, looked_up):
            return Answered(chunk, outputs, ride, looked_up)
        case outputs:
            return Answered(chunk, outputs, ride)


def _alone(batch: Batch, modules: Sequence[Module]) -> Iterator[tuple[Batch, tuple[Module, ...]]]:
    """A batch of its own for each part."""
    for part, module in zip(batch.parts, modules, strict=True):
        yield replace(batch, parts=(part,)), (module,)


def _told(error: BaseException) -> str:
    """As text, since renderers of logs would add local variables, and with them texts."""
    return "".join(traceback.format_exception(error))


def _failed(part: Part, error: BaseException) -> list[Failed]:
    if not isinstance(error, SmileError):
        get_logger().error("a batch failed", exception=_told(error), digest=part.module.digest)
        error = Internal("the batch failed inside SMILE; the processor's log has the cause")
    return [Failed(chunk, error) for chunk in part.chunks]
