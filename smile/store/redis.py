"""Redis (7.0 or later) and Valkey: one way to connect, and scripts that survive restarts.

Errors that mean "Redis is away or cannot take writes now" become `Unavailable`; everything else
Redis refuses is our bug and stays what it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import redis.asyncio
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff

from smile.errors import InvalidArgument, Unavailable

__all__ = ["Redis", "Script", "connect", "reaching_redis"]

CONNECT_TIMEOUT_S = 2.0
SOCKET_TIMEOUT_S = 10.0
BLOCK_S_MAX = 5.0  # longest wait inside Redis; below the socket's timeout
CONNECTIONS_MAX = 512  # each watched job holds one while it waits
RETRIES = 1  # a pooled connection that Redis closed meanwhile
SCHEMES = ("redis://", "rediss://", "unix://")
TRANSIENT_REPLIES = ("OOM", "MISCONF", "READONLY", "LOADING", "BUSY", "NOREPLICAS", "CLUSTERDOWN")

Redis = redis.asyncio.Redis
Argument = str | int | float | bytes


def connect(url: str, *, text: bool = True) -> Redis:
    """A client of `redis://host:port/db`, `rediss://...` or `unix:///path`; connects on first use.
    It gives text, or bytes.

    Raises:
        InvalidArgument: the URL is malformed.
    """
    if not url.startswith(SCHEMES):
        raise InvalidArgument(f"a Redis URL begins with one of {', '.join(SCHEMES)}")
    try:
        client: Redis = redis.asyncio.Redis.from_url(
            url,
            decode_responses=text,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=SOCKET_TIMEOUT_S,
            max_connections=CONNECTIONS_MAX,
            retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), RETRIES),
        )
    except ValueError as error:
        raise InvalidArgument(f"the Redis URL is malformed: {error}") from error
    return client


@contextmanager
def reaching_redis() -> Iterator[None]:
    """Turn Redis's absence inside into `Unavailable`, and let no cancellation be lost there.

    The client sends through `asyncio.wait_for`, which up to Python 3.11 swallows a cancellation
    that arrives just as the sending ends (python/cpython issue 81839): whoever calls in a loop
    would never end.
    """
    task = _current_task()
    cancelled_before = 0 if task is None else task.cancelling()
    try:
        yield
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise Unavailable(f"Redis is away: {type(error).__name__}", reason="REDIS_AWAY") from error
    except exceptions.ResponseError as error:
        word = str(error).split(" ", 1)[0]
        if word not in TRANSIENT_REPLIES and not isinstance(
            error, exceptions.ReadOnlyError | exceptions.OutOfMemoryError
        ):
            raise
        raise Unavailable(f"Redis refuses writes: {word}", reason="REDIS_REFUSES") from error


def _current_task() -> asyncio.Task[object] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs
        return None


class Script:
    """A Lua script, atomic on the server. Loaded again by itself after a restart or a flush."""

    def __init__(self, client: Redis, source: str) -> None:
        self._script = client.register_script(source)

    @classmethod
    def read(cls, client: Redis, path: Path, *, prelude: Path | None = None) -> Script:
        """The script in `path`, with the definitions of `prelude` before it."""
        before = "" if prelude is None else prelude.read_text(encoding="utf-8") + "\n"
        return cls(client, before + path.read_text(encoding="utf-8"))

    async def __call__(self, keys: Sequence[str], arguments: Sequence[Argument]) -> object:
        """The script's reply. Raises `Unavailable`."""
        with reaching_redis():
            reply: object = await self._script(keys=list(keys), args=list(arguments))
        return reply
