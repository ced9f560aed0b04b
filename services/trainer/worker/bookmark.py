"""Where an attempt is, kept in storage, so that the next one need not start again.

The training thread takes a snapshot between two steps, every so often; the event loop stores it
while training goes on. What cannot be stored is logged and tried again at the next one: a
checkpoint saves time, and nothing waits for it but a job that is given back.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future

from services.trainer.queueing.queue import Claim, JobQueue
from services.trainer.storage import Storage
from services.trainer.training.loop import Training
from services.trainer.training.snapshots import Checkpoint, decode, encode
from services.trainer.worker.report import Report
from smile.errors import DataCorrupted, SmileError
from smile.limits import CHECKPOINT_BYTES_MAX
from smile.logs import get_logger

KEEP_S_MAX = 10.0  # for the last place of a job that is given back


class Bookmark:
    """The place of one attempt.

    Args:
        every_s: Time between two checkpoints.
    """

    def __init__(
        self, storage: Storage, queue: JobQueue, claim: Claim, report: Report, every_s: float
    ) -> None:
        self._storage = storage
        self._queue = queue
        self._claim = claim
        self._report = report
        self._every_s = every_s
        self._spec_digest = ""
        self._seconds_before = 0.0
        self._began = self._kept_at = time.monotonic()
        self._storing: Future[None] | None = None
        self._last = b""
        self._log = get_logger().bind(job=str(claim.name), fence=claim.fence)

    @property
    def seconds(self) -> float:
        """Time spent on the job, by earlier attempts too as far as this one goes on from them."""
        return self._seconds_before + time.monotonic() - self._began

    async def find(self, spec_digest: str) -> Checkpoint | None:
        """Where an earlier attempt at the same spec was, its curve taken over; None to start anew.

        Raises:
            Unavailable: storage or the queue is away.
        """
        self._spec_digest = spec_digest
        if self._claim.attempt <= 1:
            return None
        data = await self._storage.checkpoint(self._claim.name)
        if not data:
            return None
        try:
            found = decode(data)
        except DataCorrupted as error:
            self._log.error("the checkpoint is damaged, starting anew", why=error.message)
            return None
        if found.spec_digest != spec_digest:
            self._log.warning("the checkpoint is of another spec, starting anew")
            return None
        curve = [metric async for metric in self._storage.curve(self._claim.name)]
        told = await self._queue.last_told(self._claim.name)
        self._report.go_on(curve[: found.curve_points], told)
        self._seconds_before = found.seconds
        self._log.info("going on", step=found.snapshot.step, epoch=found.snapshot.epoch)
        return found

    def turn(self, training: Training, loop: asyncio.AbstractEventLoop) -> None:
        """Between two steps, in the training thread: keeps the place if it is time to."""
        now = time.monotonic()
        if now - self._kept_at < self._every_s or (self._storing and not self._storing.done()):
            return
        self._kept_at = now
        data = self._taken(training)
        if data:
            self._storing = asyncio.run_coroutine_threadsafe(self._store(data), loop)

    def stop(self, training: Training) -> None:
        """In the training thread, when it is told to end: takes the last place, for `keep`."""
        self._last = self._taken(training)

    async def keep(self) -> None:
        """Stores the place where the attempt was stopped, for whoever goes on; within a time."""
        self.close()
        if self._last:
            try:
                async with asyncio.timeout(KEEP_S_MAX):
                    await self._store(self._last)
            except TimeoutError:
                self._log.warning("could not keep the last place", s_max=KEEP_S_MAX)

    def close(self) -> None:
        """Nothing is stored any more."""
        if self._storing is not None:
            self._storing.cancel()

    def _taken(self, training: Training) -> bytes:
        snapshot = training.snapshot()
        if snapshot is None or snapshot.step == 0:
            return b""
        points = len(self._report.kept())
        data = encode(Checkpoint(snapshot, self._spec_digest, points, self.seconds))
        if len(data) > CHECKPOINT_BYTES_MAX:
            self._log.warning("too large for a checkpoint", size_bytes=len(data))
            return b""
        return data

    async def _store(self, data: bytes) -> None:
        try:
            await self._storage.put_curve(self._claim.name, self._claim.fence, self._report.kept())
            await self._storage.put_checkpoint(self._claim.name, self._claim.fence, data)
        except SmileError as error:
            self._log.warning("could not keep a checkpoint", why=error.message)
