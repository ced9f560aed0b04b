"""What happens around every handler, for all four shapes of call.

request id and access log → deadline → key and role → parse and validate → handler → errors to
statuses. Each handler is rewritten once; gRPC then hands over raw bytes, so that even a message
that does not parse is answered with a proper status. Handlers read streamed requests from their
iterator, never through `context.read`, and yield streamed replies.

Handlers are found here rather than by gRPC: for a method that is registered with it, its asyncio
server waits anew for each call, and so does it for all registered ones whenever any call comes.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from types import AsyncGeneratorType
from typing import Any, TypeAlias

import grpc

from smile.rpc.access import MethodAccess
from smile.rpc.auth import Authenticator
from smile.rpc.budget import CallBytes
from smile.rpc.stages import Inside, Stages
from smile.rpc.validation import decode

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_Recheck: TypeAlias = "Callable[[], Awaitable[None]]"


class Guard(grpc.GenericRpcHandler):
    """Puts the stages above around the handlers of `access`; leaves others (health) alone.

    Stands for the server in what generated code adds handlers to.

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
        self._inside = Inside(authenticator, concurrent_rpcs_max, budget)
        self._handlers: list[grpc.GenericRpcHandler] = []
        self._guarded: dict[str, _Handler] = {}

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Serve what these do."""
        self._handlers += handlers

    def add_registered_method_handlers(self, name: str, handlers: Mapping[str, _Handler]) -> None:
        """The same handlers once more, which generated code adds for gRPC to find them faster."""

    def service(self, details: grpc.HandlerCallDetails) -> _Handler | None:
        """What serves a call."""
        path = details.method
        guarded = self._guarded.get(path)
        if guarded is not None:
            return guarded
        found = (handler.service(details) for handler in self._handlers)
        handler = next((handler for handler in found if handler is not None), None)
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
            wrap(self._inside, access, inner, handler.request_deserializer),
            request_deserializer=None,
            response_serializer=handler.response_serializer,
        )
        return guarded


def _unary_unary(
    inside: Inside, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[bytes, _Context], Any]:
    async def serve(data: bytes, context: _Context) -> Any:
        with inside.budget.holding(data):
            async with Stages(inside, access, context):
                return await inner(decode(data, parse), context)

    return serve


def _unary_stream(
    inside: Inside, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[bytes, _Context], Any]:
    async def serve(data: bytes, context: _Context) -> None:
        with inside.budget.holding(data):
            async with Stages(inside, access, context) as stages:
                await _send(inner(decode(data, parse), context), context, stages.recheck)

    return serve


def _stream_unary(
    inside: Inside, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[AsyncIterator[bytes], _Context], Any]:
    async def serve(chunks: AsyncIterator[bytes], context: _Context) -> Any:
        async with (
            Stages(inside, access, context),
            _closing(_decoded(chunks, parse, inside.budget)) as requests,
        ):
            return await inner(requests, context)

    return serve


def _stream_stream(
    inside: Inside, access: MethodAccess, inner: Callable[..., Any], parse: Callable[[bytes], Any]
) -> Callable[[AsyncIterator[bytes], _Context], Any]:
    async def serve(chunks: AsyncIterator[bytes], context: _Context) -> None:
        async with (
            Stages(inside, access, context) as stages,
            _closing(_decoded(chunks, parse, inside.budget)) as requests,
        ):
            await _send(inner(requests, context), context, stages.recheck)

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


@asynccontextmanager
async def _closing(requests: AsyncGenerator[Any, None]) -> AsyncIterator[AsyncGenerator[Any, None]]:
    """Close it at the end, unless another call that passes messages on still waits for the next:
    then it holds none, cannot be closed, and ends with this call."""
    assert isinstance(requests, AsyncGeneratorType)
    try:
        yield requests
    finally:
        if not requests.ag_running:
            await requests.aclose()


async def _send(responses: AsyncGenerator[Any, None], context: _Context, recheck: _Recheck) -> None:
    """Send what a streaming handler gives, and close it where the call ends first."""
    assert inspect.isasyncgen(responses), f"{responses} must be an async generator"
    async with aclosing(responses):
        async for response in responses:
            await recheck()
            await context.write(response)
