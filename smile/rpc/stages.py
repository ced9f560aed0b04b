"""The stages before one call's handler, and those after it.

Every call passes here, refused ones too, so this is written to cost little: the metadata is read
once, and events carry one record of the call that is filled as it becomes known.
"""

from __future__ import annotations

import asyncio
import time
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeAlias

import grpc

from smile import logs
from smile.errors import (
    DeadlineExceeded,
    DeadlineRequired,
    Internal,
    Overloaded,
    PermissionDenied,
    SmileError,
    Unauthenticated,
    Unavailable,
)
from smile.logs import LogLevel, get_logger
from smile.rpc import context as call_context
from smile.rpc.access import MethodAccess
from smile.rpc.auth import SERVICE_KEY_INVALID, Authenticator
from smile.rpc.budget import CallBytes
from smile.rpc.keys import unauthenticated
from smile.rpc.principal import Principal, set_principal
from smile.rpc.status import DETAILS_KEY, code_of, from_rpc_error, to_status, to_trailer

OVERLOADED_RETRY_S = 0.5
DEPENDENCY_RETRY_S = 1.0
PUSHBACK_KEY = "grpc-retry-pushback-ms"
_BEARER = "bearer "
_READ = frozenset(
    {call_context.REQUEST_ID_KEY, call_context.AUTHORIZATION_KEY, call_context.TENANT_KEY}
)
_OURS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNKNOWN)

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(slots=True, eq=False)
class Inside:
    """What the calls of one server share. For use on the event loop only.

    Attributes:
        authenticator: Turns keys into principals.
        calls_max: Calls served at a time.
        budget: What their messages may hold.
        calls: Calls served now.
    """

    authenticator: Authenticator
    calls_max: int
    budget: CallBytes
    calls: int = 0

    def check(self) -> None:
        """Raises `Overloaded` if more calls, or larger messages, are inside than may be."""
        if self.calls > self.calls_max:
            raise Overloaded(
                f"at most {self.calls_max} calls are served at a time",
                reason="TOO_MANY_CALLS",
                metadata={"limit": str(self.calls_max)},
                retry_after=OVERLOADED_RETRY_S,
            )
        self.budget.check()


class Stages:
    """What goes before a handler on entry, and after it on exit. For one call."""

    __slots__ = ("_about", "_access", "_admitted", "_asked_at", "_context", "_headers", "_inside",
                 "_started")  # fmt: skip

    def __init__(self, inside: Inside, access: MethodAccess, context: _Context) -> None:
        self._inside = inside
        self._access = access
        self._context = context
        self._started = self._asked_at = time.monotonic()
        self._headers = _headers(context)
        self._admitted = False
        request_id = call_context.request_id_or_new(self._headers.get(call_context.REQUEST_ID_KEY))
        call_context.set_request_id(request_id)
        self._about = {"request_id": request_id, "method": access.path}
        logs.set_about(self._about)

    async def __aenter__(self) -> Self:
        self._inside.calls += 1
        try:
            await self._admit()
        except BaseException as error:
            await self._fail(error)
            raise
        self._admitted = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            await self._fail(error)
            return
        try:
            self._set_trailers()
        finally:
            self._inside.calls -= 1
            self._log(grpc.StatusCode.OK, None)

    async def recheck(self) -> None:
        """What a stream asks before each of its messages: whether its key still works."""
        now = time.monotonic()
        if now - self._asked_at >= self._inside.authenticator.recheck_s:
            await self._principal()
            self._asked_at = now

    async def _admit(self) -> None:
        self._inside.check()
        remaining_s: float | None = self._context.time_remaining()
        if remaining_s is None:
            raise DeadlineRequired("every call needs a deadline; set a timeout on the client")
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        call_context.set_deadline(remaining_s)
        principal = await self._principal()
        self._about["role"] = principal.role.value
        if principal.tenant is not None:
            self._about["tenant"] = principal.tenant
        if principal.role not in self._access.roles:
            raise PermissionDenied(
                f"{self._access.path} is for {_listed(self._access)} keys, and this key is of the "
                f"role {principal.role.value}"
            )
        set_principal(principal)

    async def _principal(self) -> Principal:
        key = self._headers.get(call_context.AUTHORIZATION_KEY, "")
        if key[: len(_BEARER)].lower() != _BEARER:
            raise unauthenticated()
        return await self._inside.authenticator.authenticate(
            key[len(_BEARER) :].strip(), self._headers.get(call_context.TENANT_KEY)
        )

    async def _fail(self, error: BaseException) -> None:
        """Tell the caller and the log why the call ended. Raises what ends a call with an error."""
        code, reason = grpc.StatusCode.OK, None
        try:
            if isinstance(error, asyncio.CancelledError):
                code = _code_of_cancelled(self._context)
            elif isinstance(error, grpc.aio.AbortError):
                code = _code_set(self._context)
            elif isinstance(error, Exception):
                tried = _tried(error)
                known = _known(error, self._about["request_id"], self._admitted, tried)
                code, reason = code_of(known), known.reason
                await self._abort(known, tried)
        finally:
            self._inside.calls -= 1
            self._log(code, reason)

    def _set_trailers(self, *more: tuple[str, str | bytes]) -> tuple[tuple[str, str | bytes], ...]:
        """The trailing metadata: what the handler set, the request's id, and `more`."""
        trailers = (
            *(self._context.trailing_metadata() or ()),
            (call_context.REQUEST_ID_KEY, self._about["request_id"]),
            *more,
        )
        self._context.set_trailing_metadata(trailers)
        return trailers

    async def _abort(self, error: SmileError, tried: bool) -> None:
        """End the call with `error`. Where the retries of a hop further in are used up already, the
        caller is told not to multiply them (gRFC A6: a negative pushback)."""
        status = to_status(error)
        pushback = ((PUSHBACK_KEY, "-1"),) if tried else ()
        trailers = self._set_trailers(*pushback, to_trailer(status))
        await self._context.abort(code_of(error), status.message, trailers)

    def _log(self, code: grpc.StatusCode, reason: str | None) -> None:
        level = LogLevel.ERROR if code in _OURS else LogLevel.INFO
        if not logs.written(level):
            return
        duration_ms = round((time.monotonic() - self._started) * 1e3, 3)
        fields: dict[str, str | float] = {"code": code.name, "duration_ms": duration_ms}
        if reason is not None:
            fields["reason"] = reason
        logs.write_call(level, self._about, fields)


def _headers(context: _Context) -> dict[str, str]:
    """The metadata that is read here; a key sent twice counts as malformed and has no text."""
    found: dict[str, str] = {}
    for name, value in context.invocation_metadata() or ():
        if name in _READ:
            found[name] = value if name not in found and isinstance(value, str) else ""
    return found


def _listed(access: MethodAccess) -> str:
    return " or ".join(sorted(role.value for role in access.roles))


def _known(error: Exception, request_id: str, admitted: bool, tried: bool) -> SmileError:
    """`error` as the caller may see it; what was not raised on purpose is logged, not told."""
    known = from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error
    if tried and isinstance(known, Unavailable) and not _answered(error):
        get_logger().warning("a dependency does not answer", why=known.message)
        return Unavailable(
            "a service that this one needs does not answer; try again",
            retry_after=DEPENDENCY_RETRY_S,
        )
    told = isinstance(known, SmileError) and not (admitted and _refused_ourselves(known))
    if isinstance(known, SmileError) and told and code_of(known) not in _OURS:
        return known
    # As text, since renderers would add local variables, and with them request bodies.
    trace = "".join(traceback.format_exception(error))
    get_logger().error("handler failed", exception=trace)
    if isinstance(known, SmileError) and told:
        return known
    return Internal(
        f"something failed inside SMILE; its log has the cause under request id {request_id}",
        metadata={"request_id": request_id},
    )


def _refused_ourselves(error: Exception) -> bool:
    """Whether another service refused this one's own key, which is no fault of the caller."""
    return isinstance(error, Unauthenticated) and error.reason == SERVICE_KEY_INVALID


def _call_behind(error: Exception) -> grpc.aio.AioRpcError | None:
    """The failed call to another service that `error` is or comes from."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, grpc.aio.AioRpcError):
        cause = cause.__cause__
    return cause


def _tried(error: Exception) -> bool:
    """Whether a call to another service failed as unavailable, after its own retries."""
    call = _call_behind(error)
    return call is not None and call.code() == grpc.StatusCode.UNAVAILABLE


def _answered(error: Exception) -> bool:
    """Whether that service said so itself; else gRPC did, with addresses in its words."""
    call = _call_behind(error)
    return call is not None and any(key == DETAILS_KEY for key, _ in call.trailing_metadata() or ())


def _code_of_cancelled(context: _Context) -> grpc.StatusCode:
    """A cancelled handler ran out of time, or its caller (or this server, stopping) gave it up."""
    remaining_s: float | None = context.time_remaining()
    if remaining_s is not None and remaining_s <= 0:
        return grpc.StatusCode.DEADLINE_EXCEEDED
    return grpc.StatusCode.CANCELLED


def _code_set(context: _Context) -> grpc.StatusCode:
    number: int | grpc.StatusCode = context.code()
    if isinstance(number, grpc.StatusCode):
        return number
    return next((c for c in grpc.StatusCode if c.value[0] == number), grpc.StatusCode.UNKNOWN)
