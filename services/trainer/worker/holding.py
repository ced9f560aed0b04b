"""Holding a job: the lease is renewed, events flow, and the holder learns when it must let go."""

from __future__ import annotations

import asyncio
import time
from enum import StrEnum

from services.trainer.metering import Stint
from services.trainer.queueing.queue import Beat, Claim, JobQueue
from services.trainer.worker.report import Report
from smile.errors import Unavailable
from smile.logs import get_logger
from smile.resources import JobState, When

EVENTS_EVERY_S = 0.2  # two entries at a time, metrics and progress: 10 a second
RETRY_S = 1.0
BEATS_PER_LEASE = 3


class LetGo(StrEnum):
    """Why a holder must stop working."""

    CANCELLED = "cancelled"  # the owner asked for it
    LEASE_LOST = "lease lost"  # another holder may be at it
    SHUTDOWN = "shutdown"  # this process ends
    WINDOW_CLOSED = "window closed"  # a job that runs off-peak waits for the next one
    DAY_SPENT = "day spent"  # the tenant has no more training seconds today


class Holding:
    """One claimed job in this process.

    `settled` set means that the outcome is being stored: from then on only a lost lease stops it.
    `stint` counts the time, but for what it waits for a place in this process: `waiting`.
    """

    def __init__(
        self,
        queue: JobQueue,
        claim: Claim,
        report: Report,
        ending: asyncio.Event,
        stint: Stint | None = None,
    ):
        self.claim = claim
        self.stint = stint
        self.report = report
        self.settled = False
        self.waiting = False
        self._queue = queue
        self._ending = ending
        self._beaten_at = time.monotonic()  # when the lease was surely renewed last
        self._talking = asyncio.Lock()  # keeps events in order, and none after the end
        self._over = False

    async def keep(self) -> LetGo:
        """Renews the lease until there is a reason to let go."""
        while True:
            reason = await self._beat_if_due()
            if reason is LetGo.LEASE_LOST:
                return reason
            if self._ending.is_set() and not self.settled:
                return LetGo.SHUTDOWN
            if self._must_yield and not self.settled:
                return LetGo.WINDOW_CLOSED
            if self.stint is not None and self.stint.spent and not self.settled:
                return LetGo.DAY_SPENT
            if reason is not None and not self.settled:
                return reason
            await asyncio.sleep(EVENTS_EVERY_S)

    @property
    def _must_yield(self) -> bool:
        return self.claim.when is When.OFF_PEAK and not self._queue.off_peak

    async def tell(self) -> None:
        """Sends what watchers have not seen yet, if the queue is there to take it."""
        await self._beat_if_due()

    async def finish(self, state: JobState, dead_reason: str) -> bool:
        """Sends what watchers have not seen yet, and ends the job in the queue.

        False if the lease is lost and another holder decides. Raises `Unavailable`; may be
        repeated.
        """
        async with self._talking:
            gathered = self.report.gather()
            if gathered.events:
                try:
                    await self._queue.beat(
                        self.claim, progress=gathered.progress, events=gathered.events
                    )
                except Unavailable:
                    self.report.untold(gathered)
                    raise
            finished = await self._queue.finish(self.claim, state, dead_reason=dead_reason)
            self._over = True
            if finished and self.stint is not None:
                self._count(time.monotonic())
                self.stint.ended()
            return finished

    async def give_back(self) -> None:
        """Puts the job back to its place in the queue. Raises `Unavailable`."""
        if await self._queue.give_back(self.claim):
            self._count(time.monotonic())

    async def _beat_if_due(self) -> LetGo | None:
        async with self._talking:
            return None if self._over else await self._beat()

    async def _beat(self) -> LetGo | None:
        started = time.monotonic()
        gathered = self.report.gather()
        due = started - self._beaten_at >= self._queue.lease_s / BEATS_PER_LEASE
        if not gathered.events and not due:
            return None
        try:
            beat = await self._queue.beat(
                self.claim, progress=gathered.progress, events=gathered.events
            )
        except Unavailable as error:
            self.report.untold(gathered)
            return await self._endure(error)
        if beat is Beat.LEASE_LOST:
            return LetGo.LEASE_LOST
        self._beaten_at = started
        self._count(started)
        return LetGo.CANCELLED if beat is Beat.CANCEL else None

    def _count(self, until: float) -> None:
        """The job was held up to a moment, at work or waiting."""
        if self.stint is not None:
            (self.stint.waited if self.waiting else self.stint.held)(until)

    def begin(self) -> None:
        """It has waited long enough: time counts from now on."""
        if self.waiting:
            self._count(time.monotonic())
            self.waiting = False

    async def _endure(self, error: Unavailable) -> LetGo | None:
        """Training goes on without the queue for as long as the lease would."""
        silent_s = time.monotonic() - self._beaten_at
        get_logger().warning(
            "cannot renew the lease", job=str(self.claim.name), silent_s=silent_s, why=error.message
        )
        if silent_s > self._queue.lease_s:
            return LetGo.LEASE_LOST
        await asyncio.sleep(min(RETRY_S, self._queue.lease_s / 10))
        return None
