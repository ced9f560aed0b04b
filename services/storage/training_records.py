"""Durable records of training jobs, and their curves. The queue may forget; this does not."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import datetime

from services.storage import keys
from services.storage.checkpoints import Checkpoints
from services.storage.documents import Documents, Stored, load_page
from services.storage.identity import Identity
from services.storage.records import JobRecord, now
from smile import pages
from smile.errors import Aborted, DataCorrupted, FailedPrecondition, InvalidArgument, NotFound
from smile.names import JobName, TenantId
from smile.resources import Metric, TrainingJob, TrainingRecord
from smile.store.objects import LIST_KEYS_MAX, ObjectStore

CURVE_POINTS_MAX = 1_000_000


class TrainingRecords:
    """Job records, ordered by creation, and the list of those whose job has not ended."""

    def __init__(self, store: ObjectStore, identity: Identity) -> None:
        self._store = store
        self._documents = Documents(store)
        self._identity = identity
        self.checkpoints = Checkpoints(store, self._may_write)

    async def create(self, job: TrainingJob) -> TrainingRecord:
        """Store a job that does not exist yet; the same job again gives the stored one.

        Its places in the two indexes come first: without a record they count for nothing.
        """
        name = JobName.parse(job.name)
        await self._identity.tenant(name.tenant)
        stored = await self._documents.read(keys.job(name), JobRecord)
        if stored is not None:
            return stored.document.record
        record = TrainingRecord(replace(job, create_time=job.create_time or now()))
        if not job.state.done:
            await self._store.put_if_absent(keys.pending_job(name), b"")
        await self._store.put_if_absent(keys.job_place(name, _created(record)), b"")
        await self._documents.create(keys.job(name), JobRecord(record=record))
        return await self.get(name)

    async def update(self, record: TrainingRecord) -> TrainingRecord:
        """Replace a record; the time of creation stays.

        Raises:
            NotFound: there is none.
            Aborted: a later worker wrote it.
            FailedPrecondition: the job has ended, and not as `record` says.
        """
        name = JobName.parse(record.job.name)

        def apply(stored: Stored[JobRecord] | None) -> JobRecord | None:
            kept = _present(stored, name).document.record
            wanted = replace(record, job=replace(record.job, create_time=kept.job.create_time))
            if wanted == kept:
                return None
            _check_fence(kept, record.fence)
            return JobRecord(record=wanted)

        stored = await self._documents.edit(keys.job(name), JobRecord, apply)
        if stored.document.record.job.state.done:
            await self._clean(name)
        return stored.document.record

    async def get(self, name: JobName) -> TrainingRecord:
        """Raises `NotFound`."""
        return _present(await self._documents.read(keys.job(name), JobRecord), name).document.record

    async def list_page(
        self, tenant: TenantId, size: int, token: str
    ) -> tuple[list[TrainingRecord], str]:
        """A page of a tenant's records, newest first, and the token of the next."""
        listing = f"trainingJobs of {tenant}"
        prefix = keys.job_order(tenant)
        after = pages.place_of(token, listing)
        places = await self._places(prefix, after, size + 1)
        found: list[tuple[str, TrainingRecord]] = []
        more = False
        while places and not more:
            loaded, more = await load_page(places, self._loader(tenant), size - len(found))
            found += loaded
            last = len(places) <= size
            places = [] if last else await self._places(prefix, places[-1], size + 1)
        following = pages.token_for(listing, found[-1][0]) if more else ""
        return [record for _, record in found], following

    async def list_pending(self, size: int, token: str) -> tuple[list[TrainingRecord], str]:
        """Records of all tenants whose job has not ended. A page may hold fewer than `size`."""
        listing = "pending trainingJobs"
        places = await self._places(keys.PENDING_JOBS, pages.place_of(token, listing), size)

        async def load(place: str) -> TrainingRecord | None:
            tenant, _, job = place.partition("/")
            name = JobName(TenantId(tenant), job)
            stored = await self._documents.read(keys.job(name), JobRecord)
            if stored is None:
                return None
            if stored.document.record.job.state.done:
                await self._clean(name)  # whoever ended it went away before
                return None
            return stored.document.record

        found, more = await load_page(places, load, size)
        last = found[-1][0] if more else places[-1] if len(places) == size else ""
        following = pages.token_for(listing, last) if last else ""
        return [record for _, record in found], following

    async def put_curve(
        self, name: JobName, fence: int, batches: AsyncIterator[tuple[Metric, ...]]
    ) -> int:
        """Replace a job's curve; the points kept.

        Raises:
            NotFound: there is no such job.
            Aborted: a later worker has it.
            FailedPrecondition: it has ended.
            InvalidArgument: there are too many points.
        """
        await self._may_write(name, fence)
        lines = _CurveLines(batches)
        await self._store.put_stream(keys.curve(name), aiter(lines))
        return lines.points

    async def curve(self, name: JobName) -> AsyncIterator[tuple[Metric, ...]]:
        """A job's curve in batches, none where none was kept. `NotFound`, `DataCorrupted`."""
        await self.get(name)
        reader = _CurveReader(name)
        try:
            async for chunk in self._store.get_stream(keys.curve(name)):
                for batch in reader.feed(chunk):
                    yield batch
        except NotFound:
            return
        reader.finish()

    async def _may_write(self, name: JobName, fence: int) -> None:
        """Raises `NotFound`, `Aborted` under a lower fence, `FailedPrecondition` at the end."""
        _check_fence(await self.get(name), fence)

    async def _clean(self, name: JobName) -> None:
        """Removes what only a job that has not ended needs; its place among those goes last."""
        await self.checkpoints.discard(name)
        await self._store.delete(keys.pending_job(name))

    async def _places(self, prefix: str, after: str, limit: int) -> list[str]:
        place = f"{prefix}{after}" if after else None
        found = await self._store.list_objects(
            prefix, after=place, limit=min(limit, LIST_KEYS_MAX + 1)
        )
        return [info.key.removeprefix(prefix) for info in found]

    def _loader(self, tenant: TenantId) -> Callable[[str], asyncio.Future[TrainingRecord | None]]:
        async def load(place: str) -> TrainingRecord | None:
            name = JobName(tenant, place.partition("-")[2])
            stored = await self._documents.read(keys.job(name), JobRecord)
            if stored is None:
                return None
            record = stored.document.record
            right = keys.job_place(name, _created(record)).endswith(f"/{place}")
            return record if right else None

        return lambda place: asyncio.ensure_future(load(place))


class _CurveLines:
    """A curve as JSON lines: one a batch, and a last one with count and digest of the others."""

    def __init__(self, batches: AsyncIterator[tuple[Metric, ...]]) -> None:
        self._batches = batches
        self.points = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        digest = hashlib.sha256()
        async for batch in self._batches:
            self.points += len(batch)
            if self.points > CURVE_POINTS_MAX:
                raise InvalidArgument(
                    f"a curve has at most {CURVE_POINTS_MAX} points, got more",
                    reason="CURVE_TOO_LONG",
                )
            line = _line([[m.name, m.value, m.step, m.epoch] for m in batch])
            digest.update(line)
            yield line
        yield _line({"schema": 1, "points": self.points, "digest": digest.hexdigest()})


class _CurveReader:
    """Bytes of a kept curve to batches of metrics."""

    def __init__(self, name: JobName) -> None:
        self._name = name
        self._rest = b""
        self._digest = hashlib.sha256()
        self._points = 0
        self._end: dict[str, object] | None = None

    def feed(self, chunk: bytes) -> list[tuple[Metric, ...]]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [batch for line in lines if (batch := self._batch(line))]

    def finish(self) -> None:
        expected = {"schema": 1, "points": self._points, "digest": self._digest.hexdigest()}
        if self._rest or self._end != expected:
            raise self._corrupted()

    def _batch(self, line: bytes) -> tuple[Metric, ...]:
        try:
            content = json.loads(line)
            if isinstance(content, dict):
                self._end = content
                return ()
            batch = tuple(Metric(*row) for row in content)
        except (ValueError, TypeError) as error:
            raise self._corrupted() from error
        self._digest.update(line + b"\n")
        self._points += len(batch)
        return batch

    def _corrupted(self) -> DataCorrupted:
        return DataCorrupted(
            f"the kept curve of {self._name} is damaged",
            reason="DIGEST_MISMATCH",
            metadata={"resource": str(self._name)},
        )


def _line(content: object) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _check_fence(kept: TrainingRecord, fence: int) -> None:
    """Who may write to a job: the latest holder, until it has ended. Raises `Aborted` under a lower
    fence, `FailedPrecondition` at the end.
    """
    job = kept.job
    if fence < kept.fence:
        raise Aborted(f"{job.name} was written with fence {kept.fence}, this is {fence}")
    if job.state.done:
        raise FailedPrecondition(f"{job.name} has ended as '{job.state}'", reason="JOB_FINISHED")


def _created(record: TrainingRecord) -> datetime:
    assert record.job.create_time is not None
    return record.job.create_time


def _present(stored: Stored[JobRecord] | None, name: JobName) -> Stored[JobRecord]:
    if stored is None:
        raise NotFound(f"{name} does not exist", metadata={"resource": str(name)})
    return stored
