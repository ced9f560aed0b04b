"""The job queue on Redis: leases renewed by heartbeat, growing fences, turns between tenants.

Every change is one Lua script (`lua/`), so no crash leaves a job half-moved. Redis holds no truth:
what it forgets is put back from the durable records (`jobs.reconcile`).

Life of a job here: backlog of its tenant, held by a consumer under a lease, ended. A holder proves
itself by its fence; one that was paused past its lease finds a higher fence and can change nothing.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import cast

from services.trainer.events import JobEvent, MetricsEvent, StoredEvent, decode_event, encode_event
from smile.errors import QuotaExceeded
from smile.names import JobName, TenantId
from smile.resources import JobProgress, JobState, Metric, TrainingRecord
from smile.store.redis import BLOCK_S_MAX, Redis, Script, reaching_redis

PREFIX = "smile:{jobs}:"
LUA = Path(__file__).parent / "lua"
RESERVATION_MS = 30_000
EVENTS_MAX = 10_000
EVENTS_PAGE = 500
LATEST_EVENTS = 50
LEASE_LOST = -1
GROUP = "workers"
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
    places_max: int = 100  # waiting jobs of one tenant
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


class JobQueue:
    """The queue of one platform. Every method raises `Unavailable` while Redis is away."""

    def __init__(self, client: Redis, settings: QueueSettings) -> None:
        self._client = client
        self._settings = settings
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

    async def reserve(self, name: JobName) -> None:
        """Promises a place in the tenant's backlog for a short while.

        Raises:
            QuotaExceeded: as many jobs of the tenant wait as may.
        """
        limit = self._settings.places_max
        reply = await self._reserve([PREFIX], [_key(name), limit, RESERVATION_MS])
        granted, taken = cast(list[int], reply)
        if not granted:
            raise QuotaExceeded(
                f"at most {limit} training jobs of a tenant may be queued, {taken} are; "
                "wait for some to end or cancel some",
                reason="JOBS_QUEUED_MAX",
                metadata={"limit": str(limit), "value": str(taken)},
            )

    async def enqueue(self, record: TrainingRecord) -> bool:
        """Lets a durable job wait its turn; whether it was unknown before."""
        name = JobName.parse(record.job.name)
        event = encode_event(JobEvent(JobState.QUEUED, record.job.attempt))
        reply = await self._enqueue(
            [PREFIX],
            [_key(name), record.fence, record.job.attempt, event, self._settings.events_max],
        )
        return reply == 1

    async def claim(self, consumer: str) -> Claim | None:
        """A job to work on, or None: a dead worker's before those that wait."""
        reply = await self._claim([PREFIX], [consumer, int(self._settings.lease_s * 1000)])
        return None if reply is None else _claimed(cast(list[str | int], reply), consumer)

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
        replies = await self._look([PREFIX], [_key(name) for name in names])
        return [_sighting(reply) for reply in cast(list[list[str | int]], replies)]

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
            return int(await self._client.zcard(f"{PREFIX}backlog:{tenant}"))

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
    key, fence, attempt, cancelled, deaths = reply
    tenant, _, job = str(key).partition("/")
    name = JobName(TenantId(tenant), job)
    return Claim(name, int(fence), int(attempt), bool(cancelled), int(deaths), consumer)


def _sighting(reply: Sequence[str | int]) -> Sighting:
    state, attempt, progress, ahead = reply
    return Sighting(
        QueueState(str(state) or QueueState.UNKNOWN),
        int(attempt),
        _progress_from_text(str(progress)) if progress else JobProgress(),
        int(ahead),
    )


def _progress_to_text(progress: JobProgress) -> str:
    return json.dumps([getattr(progress, field) for field in JobProgress.__slots__])


def _progress_from_text(text: str) -> JobProgress:
    return JobProgress(*json.loads(text))
