"""From the prepare thread to the device thread: a bounded queue of prepared batches, and when the
next batch is formed.

A batch formed early cannot take what arrives late, which costs fill and fairness. So the last place
in the queue is filled just before the device needs it: at its predicted end, less the time that
preparing takes.

Batches that give way to others (bulk) have a queue and streams of their own. How many of them there
are is bounded where they are formed, and nobody waits for one that was formed early.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.processor.lanes.trace import Gauge, Trace

SMOOTHING = 0.2  # weight of the newest batch in what is expected
PREPARE_TIMES = 2.0  # of the usual time are allowed for preparing
ERROR_SHARE = 0.1  # of the expected time, by which the device may be early
SPARE_S = 0.002  # for waking up

Job = TypeVar("Job")


@dataclass(frozen=True, slots=True)
class Load:
    """What a prepared batch asks of the device.

    Attributes:
        tokens: Of all its texts.
        prepare_s: How long preparing it took.
        expected_s: How long it is expected to compute; None: as long per token as lately.
    """

    tokens: int
    prepare_s: float
    expected_s: float | None = None


@dataclass(slots=True)
class Pace:
    """When the next batch is to be formed. Pure; times are arguments.

    Attributes:
        token_s: Seconds of compute per token, lately; None before the first batch.
        prepare_s: Seconds that preparing a batch takes, lately.
        running: By stream, the batch it computes and when that began.
    """

    token_s: float | None = None
    prepare_s: float | None = None
    running: dict[int, tuple[Load, float]] = field(default_factory=dict)

    def prepared(self, took_s: float) -> None:
        """A batch was prepared."""
        self.prepare_s = _smoothed(self.prepare_s, took_s)

    def started(self, stream: int, load: Load, now: float) -> None:
        """A stream began a batch."""
        self.running[stream] = (load, now)

    def ended(self, stream: int, now: float) -> None:
        """A stream is through with its batch."""
        if (ran := self.running.pop(stream, None)) is not None:
            load, began = ran
            self.token_s = _smoothed(self.token_s, (now - began) / max(load.tokens, 1))

    def wait_s(self, now: float) -> float:
        """Seconds until the next batch is to be formed: just before the first stream is free."""
        return min((self._left_s(*ran, now) for ran in self.running.values()), default=0.0)

    def _left_s(self, load: Load, began: float, now: float) -> float:
        expected_s = load.expected_s
        if expected_s is None:
            expected_s = (self.token_s or 0.0) * load.tokens
        lead_s = PREPARE_TIMES * (self.prepare_s or 0.0) + ERROR_SHARE * expected_s + SPARE_S
        return max(0.0, began + expected_s - lead_s - now)


def _smoothed(known: float | None, newest: float) -> float:
    return newest if known is None else known + SMOOTHING * (newest - known)


class Handoff(Generic[Job]):
    """Prepared batches on their way to the device: one thread puts, each stream's thread takes.

    Args:
        in_flight_max: Batches prepared or computed at a time, but for bulk; 1 lets nothing overlap.
        clock: Monotonic seconds.
        trace: Told how many are in flight.
        streams: Threads that take.
        bulk_streams: Threads that take bulk.
    """

    def __init__(
        self,
        in_flight_max: int,
        clock: Callable[[], float],
        trace: Trace,
        streams: int = 1,
        bulk_streams: int = 0,
    ) -> None:
        self.streams = streams
        self.bulk_streams = bulk_streams
        self._in_flight_max = in_flight_max
        self._clock = clock
        self._trace = trace
        self._pace = Pace()
        self._jobs: deque[tuple[Job, Load]] = deque()
        self._bulk: deque[Job] = deque()
        self._begun = 0  # batches other than bulk that a stream has begun
        self._bulk_began: dict[int, int | None] = {}  # by stream: that number then; None: one ran
        self._in_flight = 0
        self._ended = False
        self._changed = threading.Condition()

    def wait_turn(self) -> None:
        """Block until the next batch is to be formed. For the thread that prepares."""
        with self._changed:
            while (wait_s := self._wait_s()) != 0.0:
                self._changed.wait(wait_s)

    def put(self, job: Job, load: Load, *, bulk: bool = False) -> None:
        """A batch is ready for the device."""
        with self._changed:
            if bulk:
                self._bulk.append(job)
                self._changed.notify_all()
                return
            self._jobs.append((job, load))
            self._in_flight += 1
            self._pace.prepared(load.prepare_s)
            self._trace.level(Gauge.IN_FLIGHT, self._clock(), self._in_flight)
            self._changed.notify_all()

    def take(self) -> Job | None:
        """Block until a batch is ready; None once no more will come. For a stream's thread."""
        with self._changed:
            while not self._jobs and not self._ended:
                self._changed.wait()
            if not self._jobs:
                return None
            job, load = self._jobs.popleft()
            self._begun += 1
            self._pace.started(threading.get_ident(), load, self._clock())
            self._changed.notify_all()
            return job

    def ended(self) -> None:
        """The calling stream is through with the batch it took last."""
        with self._changed:
            self._in_flight -= 1
            self._pace.ended(threading.get_ident(), self._clock())
            self._trace.level(Gauge.IN_FLIGHT, self._clock(), self._in_flight)
            self._changed.notify_all()

    def take_bulk(self) -> Job | None:
        """Block until a batch is ready that gives way; None once no more will come."""
        with self._changed:
            while not self._bulk and not self._ended:
                self._changed.wait()
            if not self._bulk:
                return None
            self._bulk_began[threading.get_ident()] = None if self._pace.running else self._begun
            return self._bulk.popleft()

    def ended_bulk(self) -> bool:
        """The calling stream is through with its bulk. Whether it never had to give way."""
        with self._changed:
            return self._bulk_began.pop(threading.get_ident()) == self._begun

    def close(self) -> None:
        """Nothing more will be put; what is ready can still be taken."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _wait_s(self) -> float | None:
        """Seconds to wait before forming a batch; None: until a batch has left the device."""
        if self._in_flight >= self._in_flight_max:
            return None
        if self._in_flight < max(1, self._in_flight_max - 1):
            return 0.0
        if len(self._pace.running) < min(self.streams, self._in_flight):
            return None  # a batch is ready, and a stream is about to take it
        return self._pace.wait_s(self._clock())
