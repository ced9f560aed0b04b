"""What happens around every handler, for all four shapes of call.

request id and access log → deadline → key and role → parse and validate → handler → errors to
statuses. One interceptor rewrites each handler once; gRPC then hands over raw bytes, so
that even a message that does not parse is answered with a proper status. Handlers read streamed
requests from their iterator, never through `context.read`, and yield streamed replies.
"""

from __future__ import annotations

import asyncio
import inspect
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import grpc
import structlog

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
from smile.logs import get_logger
from smile.rpc import context as call_context
from smile.rpc.access import MethodAccess
from smile.rpc.auth import SERVICE_KEY_INVALID, Authenticator
from smile.rpc.budget import CallBytes
from smile.rpc.keys import unauthenticated
from smile.rpc.principal import Principal, set_principal
from smile.rpc.status import DETAILS_KEY, code_of, from_rpc_error, to_status, to_trailers
from smile.rpc.validation import decode

OVERLOADED_RETRY_S = 0.5
DEPENDENCY_RETRY_S = 1.0
PUSHBACK_KEY = "grpc-retry-pushback-ms"
_BEARER = "bearer "
_OURS = (grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNKNOWN)

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Recheck: TypeAlias = "Callable[[], Awaitable[None]]"
_Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]]"


@dataclass(slots=True)
class _Outcome:
    """How a call ended, for its access line."""

    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str | None = None
    admitted: bool = False


class Guard(grpc.aio.ServerInterceptor):
    """Puts the stages above around the handlers of `access`; leaves others (health) alone.

    Args:
        access: The RPCs served and who may call them, by path.
        authenticator: Turns keys into principals.
        concurrent_rpcs_max: Calls served at a time; more are refused with `Overloaded`.
        budget: What their messages may hold; more are refused likewise.
    """

    def __init__(
        self,
        access: Mapping[str, MethodAccess],
        authenticator: Authenticator,
        concurrent_rpcs_max: int,
        budget: CallBytes,
    ) -> None:
        self._access = access
        self._authenticator = authenticator
        self._concurrent_rpcs_max = concurrent_rpcs_max
        self._concurrent_rpcs = 0
        self.budget = budget
        self._guarded: dict[str, _Handler] = {}

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> _Handler | None:
        path = handler_call_details.method
        guarded = self._guarded.get(path)
        if guarded is not None:
            return guarded
        handler = await continuation(handler_call_details)
        if handler is None or path not in self._access:
            return handler
        return self._guarded.setdefault(path, self._guard(handler, self._access[path]))

    def _guard(self, handler: _Handler, access: MethodAccess) -> _Handler:
        shape = (handler.request_streaming, handler.response_streaming)
        make, wrap = _SHAPES[shape]
        inner: Callable[..., Any] = getattr(
            handler, make.__name__.removesuffix("_rpc_method_handler")
        )
        guarded: _Handler = make(
            wrap(self, access, inner, handler.request_deserializer),
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )
        return guarded

    @asynccontextmanager
    async def serving(self, access: MethodAccess, context: _Context) -> AsyncIterator[_Recheck]:
        """The stages before a handler on entry, and those after it on exit. Gives what a stream
        asks before each of its messages: whether its key still works."""
        started = time.monotonic()
        outcome = _Outcome()
        request_id = _begin(access, context)
        self._concurrent_rpcs += 1
        try:
            await self._admit(access, context)
            outcome.admitted = True
            yield self._rechecking(context)
            _return_request_id(request_id, context)
        except asyncio.CancelledError:
            outcome.code = _code_of_cancelled(context)
            raise
        except grpc.aio.AbortError:
            outcome.code = _code_set(context)
            raise
        except Exception as error:
            known = _known(error, request_id, admitted=outcome.admitted)
            outcome.code, outcome.reason = code_of(known), known.reason
            _return_request_id(request_id, context)
            await _abort(known, context, tried=_tried(error))
        finally:
            self._concurrent_rpcs -= 1
            _log(outcome, time.monotonic() - started)

    async def _admit(self, access: MethodAccess, context: _Context) -> None:
        if self._concurrent_rpcs > self._concurrent_rpcs_max:
            raise Overloaded(
                f"at most {self._concurrent_rpcs_max} calls are served at a time",
                reason="TOO_MANY_CALLS",
                metadata={"limit": str(self._concurrent_rpcs_max)},
                retry_after=OVERLOADED_RETRY_S,
            )
        self.budget.check()
        remaining_s: float | None = context.time_remaining()
        if remaining_s is None:
            raise DeadlineRequired("every call needs a deadline; set a timeout on the client")
        if remaining_s <= 0:
            raise DeadlineExceeded("the deadline had passed when the call arrived")
        call_context.set_deadline(remaining_s)
        await self._identify(access, context)

    async def _principal(self, context: _Context) -> Principal:
        key = _metadata(context, call_context.AUTHORIZATION_KEY) or ""
        if key[: len(_BEARER)].lower() != _BEARER:
            raise unauthenticated()
        tenant_header = _metadata(context, call_context.TENANT_KEY)
        return await self._authenticator.authenticate(key[len(_BEARER) :].strip(), tenant_header)

    def _rechecking(self, context: _Context) -> _Recheck:
        asked_at = time.monotonic()

        async def recheck() -> None:
            nonlocal asked_at
            now = time.monotonic()
            if now - asked_at >= self._authenticator.recheck_s:
                await self._principal(context)
                asked_at = now

        return recheck

    async def _identify(self, access: MethodAccess, context: _Context) -> None:
        principal = await self._principal(context)
        structlog.contextvars.bind_contextvars(role=principal.role.value)
        if principal.tenant is not None:
            structlog.contextvars.bind_contextvars(tenant=principal.tenant)
        if principal.role not in access.roles:
            raise PermissionDenied(
                f"{access.path} is for {_listed(access)} keys, and this key is of the role "
                f"{principal.role.value}"
            )
        set_principal(principal)


def _unary_unary(
    guard: Guard, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[bytes, _Context], Any]:
    async def serve(data: bytes, context: _Context) -> Any:
        with guard.budget.holding(data):
            async with guard.serving(access, context):
                return await inner(decode(data, parse), context)

    return serve


def _unary_stream(
    guard: Guard, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[bytes, _Context], Any]:
    async def serve(data: bytes, context: _Context) -> None:
        with guard.budget.holding(data):
            async with guard.serving(access, context) as recheck:
                await _send(inner(decode(data, parse), context), context, recheck)

    return serve


def _stream_unary(
    guard: Guard, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[AsyncIterator[bytes], _Context], Any]:
    async def serve(chunks: AsyncIterator[bytes], context: _Context) -> Any:
        async with (
            guard.serving(access, context),
            aclosing(_decoded(chunks, parse, guard.budget)) as requests,
        ):
            return await inner(requests, context)

    return serve


def _stream_stream(
    guard: Guard, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[AsyncIterator[bytes], _Context], Any]:
    async def serve(chunks: AsyncIterator[bytes], context: _Context) -> None:
        async with (
            guard.serving(access, context) as recheck,
            aclosing(_decoded(chunks, parse, guard.budget)) as requests,
        ):
            await _send(inner(requests, context), context, recheck)

    return serve


_SHAPES: dict[tuple[bool, bool], tuple[Callable[..., Any], Callable[..., Any]]] = {
    (False, False): (grpc.unary_unary_rpc_method_handler, _unary_unary),
    (False, True): (grpc.unary_stream_rpc_method_handler, _unary_stream),
    (True, False): (grpc.stream_unary_rpc_method_handler, _stream_unary),
    (True, True): (grpc.stream_stream_rpc_method_handler, _stream_stream),
}


async def _decoded(
    chunks: AsyncIterator[bytes], parse: Callable[[bytes], Any], budget: CallBytes
) -> AsyncGenerator[Any, None]:
    async for data in chunks:
        with budget.holding(data):
            budget.check()
            yield decode(data, parse)


async def _send(responses: AsyncGenerator[Any, None], context: _Context, recheck: _Recheck) -> None:
    """Send what a streaming handler gives, and close it where the call ends first."""
    assert inspect.isasyncgen(responses), f"{responses} must be an async generator"
    async with aclosing(responses):
        async for response in responses:
            await recheck()
            await context.write(response)


def _begin(access: MethodAccess, context: _Context) -> str:
    request_id = call_context.request_id_or_new(_metadata(context, call_context.REQUEST_ID_KEY))
    call_context.set_request_id(request_id)
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(request_id=request_id, method=access.path)
    return request_id


def _metadata(context: _Context, key: str) -> str | None:
    """The one value of `key`; sent twice, it counts as malformed and gives an empty text."""
    values = [value for name, value in context.invocation_metadata() or () if name == key]
    if not values:
        return None
    only = values[0]
    return only if len(values) == 1 and isinstance(only, str) else ""


def _listed(access: MethodAccess) -> str:
    return " or ".join(sorted(role.value for role in access.roles))


def _return_request_id(request_id: str, context: _Context) -> None:
    kept = [item for item in context.trailing_metadata() or ()]
    context.set_trailing_metadata((*kept, (call_context.REQUEST_ID_KEY, request_id)))


def _known(error: Exception, request_id: str, *, admitted: bool) -> SmileError:
    """`error` as the caller may see it; what was not raised on purpose is logged, not told."""
    known = from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error
    if _tried(error) and isinstance(known, Unavailable) and not _answered(error):
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


async def _abort(error: SmileError, context: _Context, *, tried: bool) -> None:
    """End the call with `error`. Where the retries of a hop further in are used up already, the
    caller is told not to multiply them (gRFC A6: a negative pushback)."""
    pushback = ((PUSHBACK_KEY, "-1"),) if tried else ()
    trailers = (*(context.trailing_metadata() or ()), *pushback, *to_trailers(error))
    await context.abort(code_of(error), to_status(error).message, trailers)


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


def _log(outcome: _Outcome, duration_s: float) -> None:
    level = "error" if outcome.code in _OURS else "info"
    fields: dict[str, object] = {
        "code": outcome.code.name,
        "duration_ms": round(duration_s * 1e3, 3),
    }
    if outcome.reason is not None:
        fields["reason"] = outcome.reason
    getattr(get_logger(), level)("call", **fields)
