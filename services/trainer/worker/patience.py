"""Waiting for a dependency that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from smile.errors import DeadlineExceeded, Overloaded, Unavailable
from smile.logs import get_logger

FIRST_WAIT_S = 0.2
WAIT_S_MAX = 10.0

Answer = TypeVar("Answer")


async def patiently(call: Callable[[], Awaitable[Answer]]) -> Answer:
    """The answer of `call`, asked again for as long as the other side is away.

    There is no limit: whoever waits is cancelled from outside. `call` must be safe to repeat.
    """
    wait_s = FIRST_WAIT_S
    while True:
        try:
            return await call()
        except (Unavailable, DeadlineExceeded, Overloaded) as error:
            get_logger().warning("waiting for a dependency", wait_s=wait_s, why=error.message)
            await asyncio.sleep(max(wait_s, error.retry_after or 0.0))
            wait_s = min(wait_s * 2, WAIT_S_MAX)
