"""The job queue on Redis: leases renewed by heartbeat, growing fences, turns between tenants.

Every change is one Lua script (`lua/`), so no crash leaves a job half-moved. Redis holds no truth:
what it forgets is put back from the durable records (`jobs.reconcile`).

Whose turn it is, `turns` decides on what the scripts tell, and `windows` whether jobs that run
off-peak may. Life of a job here: backlog of its tenant, held by a consumer under a lease, ended. A
holder proves itself by its fence; one that was paused past its lease finds a higher fence and can
change nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias, cast

from services.trainer.queueing.events import (
    JobEvent,
    MetricsEvent,
    StoredEvent,
    decode_event,
    encode_event,
)
from services.trainer.queueing.turns import Pace, Share, Shares, Table, Waiting
from services.trainer.queueing.windows import Windows
from smile.errors import QuotaExceeded
from smile.names import JobName, TenantId
from smile.resources import JobProgress, JobState, Metric, TrainingRecord, When
from smile.store.redis import BLOCK_S_MAX, Redis, Script, reaching_redis

PREFIX = "smile:{jobs2}:"
LUA = Path(__file__).parent / "lua"
RESERVATION_MS = 30_000
EVENTS_MAX = 10_000
EVENTS_PAGE = 500
LATEST_EVENTS = 50
TRIES = 8  # to take the job whose turn it is, where other workers take it first
WORKER_SILENT_S_MAX = 30.0  # idle ones are heard of every two seconds
LEASE_LOST = -1
GROUP = "workers"
QUEUED_RETRY_S = 30.0  # where nobody knows yet how long jobs take
Terms: TypeAlias = Callable[[TenantId, Share], Awaitable[Share]]
CONSUMER_IDLE_MS_MAX = 3_600_000


class QueueState(StrEnum):
    """Where the queue has a job."""

    UNKNOWN = "unknown"
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Times and bounds of the queue."""

    lease_s: float = 60.0
    shares: Shares = field(default_factory=Shares)
    windows: Windows | None = None  # of jobs that run off-peak; None: always open
    keep_s: int = 86_400  # how long an ended job's events stay; later they come from the kept curve
    events_max: int = EVENTS_MAX


@dataclass(frozen=True, slots=True)
class Claim:
    """A job that its holder may work on while the lease lasts."""

    name: JobName
    fence: int
    attempt: int
    cancelled: bool
    deaths: int  # holders before this one whose lease ran out
    consumer: str
    when: When = When.NOW


class Beat(StrEnum):
    """What a holder learns when it renews its lease."""

    GO_ON = "go on"
    CANCEL = "cancel"
    LEASE_LOST = "lease lost"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What the queue knows of a job now."""

    state: QueueState
    attempt: int
    progress: JobProgress
    jobs_ahead: int
    starts_at: datetime | None = None  # an estimate


async def as_set(_: TenantId, share: Share) -> Share:
    """A tenant's share as the settings have it."""
    return share


class JobQueue:
    """The queue of one platform. Every method raises `Unavailable` while Redis is away."""

    def __init__(
        self,
        client: Redis,
        settings: QueueSettings,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._client = client
        self._settings = settings
        self._clock = clock
        self._take = _script(client, "take")
        self._waiting = _script(client, "waiting")
        self._reserve = _script(client, "reserve")
        self._enqueue = _script(client, "enqueue")
        self._claim = _script(client, "claim")
        self._beat = _script(client, "beat")
        self._finish = _script(client, "finish")
        self._give_back = _script(client, "give_back")
        self._cancel = _script(client, "cancel")
        self._look = _script(client, "look")

    @property
    def lease_s(self) -> float:
        return self._settings.lease_s

    async def reserve(self, name: JobName, terms: Terms = as_set) -> None:
        """Promises a place in the tenant's backlog for a short while; `terms` tells its share.

        Raises:
            QuotaExceeded: as many jobs of the tenant wait as may.
        """
        limit = (await terms(name.tenant, self._settings.shares.of(name.tenant))).queued_max
        reply = await self._reserve([PREFIX], [_key(name), limit, RESERVATION_MS])
        granted, taken = cast(list[int], reply)
        if not granted:
            raise QuotaExceeded(
                f"at most {limit} training jobs of a tenant may be queued, {taken} are; "
                "wait for some to end or cancel some",
                reason="JOBS_QUEUED_MAX",
                metadata={"limit": str(limit), "value": str(taken)},
                retry_after=await self._a_job_s(),
            )

    async def enqueue(self, record: TrainingRecord) -> bool:
        """Lets a durable job wait its turn; whether it was unknown before."""
        name = JobName.parse(record.job.name)
        event = encode_event(JobEvent(JobState.QUEUED, record.job.attempt))
        reply = await self._enqueue(
            [PREFIX],
            [
                _key(name),
                record.fence,
                record.job.attempt,
                event,
                self._settings.events_max,
                record.job.when,
                record.job.priority,
            ],
        )
        return reply == 1

    async def claim(self, consumer: str, terms: Terms = as_set) -> Claim | None:
        """A job to work on, or None: a dead worker's before those that wait.

        `turns` says whose turn it is, among those whose `terms` let them run one more; where
        another worker took that job first, it is asked again.
        """
        reply = await self._claim([PREFIX], [consumer, int(self._settings.lease_s * 1000)])
        shares, open_ = self._settings.shares, self.off_peak
        for _ in range(TRIES):
            if reply is not None:
                break
            turn = await self._turn(shares, open_, terms)
            if turn is None:
                return None
            chosen, share = turn
            reply = await self._take(
                [PREFIX], [consumer, chosen.head(open_), share.running_max, share.stride]
            )
        return None if reply is None else _claimed(cast(list[str | int], reply), consumer)

    @property
    def off_peak(self) -> bool:
        """Whether jobs that wait for a window may run now."""
        windows = self._settings.windows
        return windows is None or windows.open_at(self._clock())

    async def wait(self, timeout_s: float) -> None:
        """Returns when a job may be waiting, or after the time."""
        with reaching_redis():
            await self._client.blpop([f"{PREFIX}wake"], timeout=min(timeout_s, BLOCK_S_MAX))

    async def beat(
        self,
        claim: Claim,
        *,
        progress: JobProgress | None = None,
        events: Sequence[StoredEvent] = (),
    ) -> Beat:
        """Renews the lease, and records progress and events under it."""
        reply = await self._beat(
            [PREFIX],
            [
                _key(claim.name),
                claim.fence,
                claim.consumer,
                "" if progress is None else _progress_to_text(progress),
                self._settings.events_max,
                *(encode_event(event) for event in events),
            ],
        )
        if reply == LEASE_LOST:
            return Beat.LEASE_LOST
        return Beat.CANCEL if reply == 1 else Beat.GO_ON

    async def finish(self, claim: Claim, state: JobState, *, dead_reason: str = "") -> bool:
        """Ends the job; False if the lease is lost and another holder decides."""
        event = encode_event(JobEvent(state, claim.attempt))
        reply = await self._finish(
            [PREFIX],
            [
                _key(claim.name),
                claim.fence,
                claim.consumer,
                state,
                event,
                self._settings.events_max,
                self._settings.keep_s,
                dead_reason,
            ],
        )
        return reply == 1

    async def give_back(self, claim: Claim) -> bool:
        """Puts the job back to its old place; False if the lease is lost."""
        event = encode_event(JobEvent(JobState.QUEUED, claim.attempt))
        reply = await self._give_back(
            [PREFIX],
            [_key(claim.name), claim.fence, claim.consumer, event, self._settings.events_max],
        )
        return reply == 1

    async def cancel(self, name: JobName, consumer: str) -> tuple[QueueState, Claim | None]:
        """Asks the job to stop: where it was, and the claim to end it by if it waited."""
        reply = cast(list[str | int], await self._cancel([PREFIX], [_key(name), consumer]))
        state = QueueState(str(reply[0]))
        claim = _claimed(reply[1:], consumer) if state is QueueState.QUEUED else None
        return state, claim

    async def look(self, names: Sequence[JobName]) -> list[Sighting]:
        """Where jobs are now, in order."""
        if not names:
            return []
        reply = await self._look([PREFIX], [_key(name) for name in names])
        replies = cast(list[list[str | int]], reply)
        table, pace = Table((), 0), Pace()
        if any(found[0] == QueueState.QUEUED for found in replies):  # no other asks for its turn
            table, pace = await self._table()
        return [
            self._sighting(name, found, table, pace)
            for name, found in zip(names, replies, strict=True)
        ]

    async def events(
        self, name: JobName, *, after: str, wait_s: float
    ) -> list[tuple[str, StoredEvent]]:
        """Up to a page of `(entry id, event)` after an entry id ('0' from the start).

        Waits for the first one at most `wait_s`; 0 does not wait.
        """
        block_ms = int(min(wait_s, BLOCK_S_MAX) * 1000) or None
        with reaching_redis():
            reply = await self._client.xread(
                {_events_key(name): after}, count=EVENTS_PAGE, block=block_ms
            )
        pages = reply.items() if isinstance(reply, dict) else reply or ()
        return [
            (str(entry), decode_event(fields["body"]))
            for _, entries in pages
            for entry, fields in _entries(entries)
        ]

    async def last_told(self, name: JobName) -> Metric | None:
        """The last metric among the job's latest events."""
        with reaching_redis():
            latest = _entries(await self._client.xrevrange(_events_key(name), count=LATEST_EVENTS))
        for _, fields in latest:
            event = decode_event(fields["body"])
            if isinstance(event, MetricsEvent) and event.metrics:
                return event.metrics[-1]
        return None

    async def has_first_event(self, name: JobName) -> bool:
        """Whether the job's events are here from the very first one."""
        with reaching_redis():
            first = _entries(await self._client.xrange(_events_key(name), count=1))
        if not first:
            return False
        event = decode_event(first[0][1]["body"])
        return isinstance(event, JobEvent) and event.state is JobState.QUEUED

    async def has_event(self, name: JobName, entry: str) -> bool:
        """Whether an entry of the job's events is still here, so that none behind it is missing."""
        with reaching_redis():
            found = await self._client.xrange(_events_key(name), min=entry, max=entry)
        return bool(_entries(found))

    async def backlog(self, tenant: TenantId) -> int:
        """Jobs of a tenant that wait."""
        with reaching_redis():
            return sum([int(await self._client.zcard(f"{PREFIX}{w}:{tenant}")) for w in When])

    async def dead(self) -> AsyncIterator[tuple[str, str]]:
        """Jobs given up, oldest first: `({tenant}/{job}, reason)`."""
        with reaching_redis():
            entries = _entries(await self._client.xrange(f"{PREFIX}dead"))
        for _, fields in entries:
            yield fields["job"], fields["reason"]

    async def prune_consumers(self) -> int:
        """Forgets consumers that hold nothing and were not heard of for long; how many."""
        pruned = 0
        with reaching_redis():
            if not await self._client.exists(f"{PREFIX}leased"):
                return 0
            for consumer in await self._client.xinfo_consumers(f"{PREFIX}leased", GROUP):
                if consumer["pending"] == 0 and consumer["idle"] > CONSUMER_IDLE_MS_MAX:
                    await self._client.xgroup_delconsumer(
                        f"{PREFIX}leased", GROUP, consumer["name"]
                    )
                    pruned += 1
        return pruned

    async def _turn(
        self, shares: Shares, open_: bool, terms: Terms
    ) -> tuple[Waiting, Share] | None:
        """Whose turn it is, and its share; None where nobody may run a job now."""
        barred: set[TenantId] = set()
        table, _ = await self._table()
        while (chosen := table.next(shares, open_=open_, barred=barred)) is not None:
            share = await terms(chosen.tenant, shares.of(chosen.tenant))
            if chosen.running < share.running_max:
                return chosen, share
            barred.add(chosen.tenant)
        return None

    async def _a_job_s(self) -> float:
        """About how long until a job ends."""
        _, pace = await self._table()
        return pace.job_s / max(pace.busy, 1) or QUEUED_RETRY_S

    async def _table(self) -> tuple[Table, Pace]:
        """Who waits, and how fast jobs are done."""
        heard_ms = int(max(self._settings.lease_s, WORKER_SILENT_S_MAX) * 1000)
        reply = await self._waiting([PREFIX], [heard_ms])
        level, job_s, workers, busy = cast(list[str | int], reply)[:4]
        waiting = tuple(map(_waiting, cast(list[list[str | int]], reply)[4:]))
        return Table(waiting, int(float(level))), Pace(float(job_s), int(workers), int(busy))

    def _sighting(
        self, name: JobName, reply: Sequence[str | int], table: Table, pace: Pace
    ) -> Sighting:
        found, attempt, progress, when, before, others = reply
        state = QueueState(str(found) or QueueState.UNKNOWN)
        told = _progress_from_text(str(progress)) if progress else JobProgress()
        if state is not QueueState.QUEUED:
            return Sighting(state, int(attempt), told, 0)
        windows, now = self._settings.windows, self._clock()
        open_ = self.off_peak or when == When.OFF_PEAK  # as it will be when its turn comes
        rank = int(before) + (int(others) if open_ else 0)
        ahead = table.jobs_ahead(name.tenant, rank, self._settings.shares, open_=open_)
        wait_s = pace.wait_s(ahead)
        starts_at = None if wait_s is None else now + timedelta(seconds=wait_s)
        if wait_s is not None and when == When.OFF_PEAK and windows is not None:
            starts_at = windows.after(now, timedelta(seconds=wait_s))
        return Sighting(state, int(attempt), told, ahead, starts_at)

    async def probe(self) -> None:
        """Raises `Unavailable` unless Redis takes commands."""
        with reaching_redis():
            await self._client.ping()


def _script(client: Redis, name: str) -> Script:
    return Script.read(client, LUA / f"{name}.lua", prelude=LUA / "common.lua")


def _key(name: JobName) -> str:
    return f"{name.tenant}/{name.job}"


def _events_key(name: JobName) -> str:
    return f"{PREFIX}events:{_key(name)}"


def _entries(entries: object) -> list[tuple[str, dict[str, str]]]:
    """Stream entries; RESP3 replies nest them once more than RESP2's."""
    rows = cast(list[object], entries or [])
    if rows and isinstance(rows[0], list):
        rows = rows[0]
    return cast(list[tuple[str, dict[str, str]]], rows)


def _claimed(reply: Sequence[str | int], consumer: str) -> Claim:
    key, fence, attempt, cancelled, deaths, when = reply
    tenant, _, job = str(key).partition("/")
    name = JobName(TenantId(tenant), job)
    return Claim(
        name, int(fence), int(attempt), bool(cancelled), int(deaths), consumer, When(str(when))
    )


def _waiting(row: Sequence[str | int]) -> Waiting:
    tenant, paid, joined, running, now, nows, off_peak, off_peaks, earlier = row
    return Waiting(
        tenant=TenantId(str(tenant)),
        paid=int(float(paid)),
        joined=int(joined),
        running=int(running),
        now=(str(now), int(nows)),
        off_peak=(str(off_peak), int(off_peaks)),
        off_peak_first=bool(int(earlier)),
    )


def _progress_to_text(progress: JobProgress) -> str:
    return json.dumps([getattr(progress, field) for field in JobProgress.__slots__])


def _progress_from_text(text: str) -> JobProgress:
    return JobProgress(*json.loads(text))
