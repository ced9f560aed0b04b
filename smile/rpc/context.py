"""What a call carries along: its deadline and its request id, as context variables.

They are set by the server's interceptor and read by outgoing channels, so a call made inside a
handler inherits both without the handler passing them.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from smile.errors import DeadlineExceeded

REQUEST_ID_KEY = "smile-request-id"
TENANT_KEY = "smile-tenant"
AUTHORIZATION_KEY = "authorization"
HOP_MARGIN_S = 0.05

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)
_request_id: ContextVar[str | None] = ContextVar("smile_request_id", default=None)
_deadline: ContextVar[float | None] = ContextVar("smile_deadline", default=None)


def current_request_id() -> str | None:
    """The id of the request being served, if any."""
    return _request_id.get()


def request_id_or_new(offered: object = None) -> str:
    """`offered` where it is a well-formed request id, else a new one."""
    if isinstance(offered, str) and _REQUEST_ID.fullmatch(offered):
        return offered
    return f"{random.getrandbits(128):032x}"


def set_request_id(request_id: str) -> None:
    """Give the rest of this task, and what it starts, `request_id`."""
    _request_id.set(request_id)


@contextmanager
def deadline_in(remaining_s: float) -> Iterator[None]:
    """Calls made inside end by then, less a margin per hop."""
    token = _deadline.set(time.monotonic() + remaining_s)
    try:
        yield
    finally:
        _deadline.reset(token)


def set_deadline(remaining_s: float) -> None:
    """Like `deadline_in`, for the rest of this task."""
    _deadline.set(time.monotonic() + remaining_s)


def remaining_s() -> float | None:
    """Seconds until the deadline of the request being served; None outside one."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def outgoing_timeout_s(asked_s: float | None, default_s: float) -> float:
    """The timeout of a call made now: what was asked, within what is left of this request.

    Raises:
        DeadlineExceeded: nothing is left; gRPC would still let the call try for some milliseconds.
    """
    inherited = remaining_s()
    if inherited is None:
        return default_s if asked_s is None else asked_s
    within = inherited - HOP_MARGIN_S
    if within <= 0:
        raise DeadlineExceeded(
            f"{max(inherited, 0.0):.3f} s are left of the request, a call needs over {HOP_MARGIN_S}"
        )
    return within if asked_s is None else min(asked_s, within)
