"""Trying again where it cannot do harm.

gRPC itself retries UNAVAILABLE on unary calls (see `smile.rpc.channel`). It cannot replay a stream
of messages that it has not kept, so uploads are retried here, from their first byte and under the
same request id.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from smile.errors import SmileError, Unavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between tries, in seconds: `first_s`, doubling, at most `wait_s_max`, jittered by half.

    An error that says when to come back is waited for at least that long.
    """

    tries_max: int = 4
    first_s: float = 0.1
    wait_s_max: float = 5.0

    def wait_s(self, failures: int, error: SmileError) -> float:
        """How long to wait after the `failures`-th failure in a row (from 1)."""
        wait = min(self.first_s * 2.0 ** (failures - 1), self.wait_s_max)
        jittered = wait * random.uniform(0.5, 1.0)  # noqa: S311 -- spreads load, keeps no secret
        return max(jittered, error.retry_after or 0.0)


async def retried(
    call: Callable[[], Awaitable[T]],
    *,
    on: tuple[type[SmileError], ...] = (Unavailable,),
    backoff: Backoff | None = None,
) -> T:
    """The result of `call`, tried again while it raises one of `on`; then that error."""
    backoff = backoff or Backoff()
    failures = 0
    while True:
        try:
            return await call()
        except on as error:
            failures += 1
            if failures >= backoff.tries_max:
                raise
            await asyncio.sleep(backoff.wait_s(failures, error))
