"""A service for tests of the RPC layer: `probe.proto` beside it, compiled when imported."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    duration_pb2,
    field_mask_pb2,
    message_factory,
    timestamp_pb2,
)
from grpc_tools import protoc

from buf.validate import validate_pb2
from smile.errors import DataCorrupted, NotFound, Overloaded, Unauthenticated, Unavailable
from smile.rpc.auth import current_principal
from smile.rpc.channel import calling
from smile.rpc.context import current_request_id, remaining_s
from smile.rpc.server import Service
from smile.v1 import options_pb2

PACKAGE = "smile.probe.v1"
PROBE = f"{PACKAGE}.ProbeService"
OPEN = f"{PACKAGE}.OpenService"
HERE = Path(__file__).resolve().parent


def _compile() -> None:
    """Add `probe.proto` to the default descriptor pool."""
    known = descriptor_pb2.FileDescriptorSet()
    well_known = (descriptor_pb2, duration_pb2, field_mask_pb2, timestamp_pb2)
    for module in (*well_known, validate_pb2, options_pb2):
        module.DESCRIPTOR.CopyToProto(known.file.add())
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "known.binpb"), Path(directory, "probe.binpb")
        source.write_bytes(known.SerializeToString())
        command = ["protoc", f"--descriptor_set_in={source}", f"-I{HERE}"]
        assert protoc.main([*command, f"--descriptor_set_out={target}", "probe.proto"]) == 0
        (file,) = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())


def _message(name: str) -> Any:
    found = descriptor_pool.Default().FindMessageTypeByName(f"{PACKAGE}.{name}")
    return message_factory.GetMessageClass(found)


_compile()
Request, Item, Reply = _message("ProbeRequest"), _message("Item"), _message("ProbeReply")


class Probe:
    """The handlers. What they do is in the request's `act`."""

    def __init__(self, following: ProbeClient | None = None) -> None:
        self.following = following
        self.inside = asyncio.Event()
        self.release = asyncio.Event()
        self.ended = asyncio.Event()
        self.calls = 0
        self.unavailable_first = 0

    async def unary(self, request: Any, context: Any) -> Any:
        self.calls += 1
        if request.act == "abort":
            await context.abort(grpc.StatusCode.OUT_OF_RANGE, "by hand")
        return await self._act(request)

    async def download(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls += 1
        try:
            yield Reply(text="first")
            yield await self._act(request)
            yield Reply(text="last")
        finally:
            self.ended.set()

    async def upload(self, requests: AsyncIterator[Any], context: Any) -> Any:
        self.calls += 1
        reply = Reply(text="nothing")
        async for request in requests:
            reply = await self._act(request)
        return reply

    async def chat(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            yield await self._act(request)

    async def _act(self, request: Any) -> Any:
        match request.act:
            case "crash":
                raise RuntimeError("planted: tenant globex has 7 secrets")
            case "absent":
                raise NotFound("tenants/acme/vplms/x does not exist", metadata={"resource": "x"})
            case "corrupted":
                raise DataCorrupted("the digest is another")
            case "misconfigured":
                raise Unauthenticated("wrong service key", reason="SERVICE_KEY_INVALID")
            case "full":
                raise Overloaded("the queue is full: 10 of 10", retry_after=1.5)
            case "wait":
                return await self._wait()
            case "hop" | "hop flaky" as hop:
                assert self.following is not None
                act = hop.removeprefix("hop").strip() or "remaining"
                with calling():
                    return await self.following.unary(Request(act=act), timeout=60)
            case "flaky" if self.calls <= self.unavailable_first:
                raise Unavailable("a dependency is away")
        principal = current_principal()
        who = f"{principal.role} {principal.tenant or '-'} {current_request_id()}"
        return Reply(text=who, remaining_s=remaining_s())

    async def _wait(self) -> Any:
        self.inside.set()
        try:
            await self.release.wait()
            return Reply(text="released")
        finally:
            self.ended.set()


def add_probe(probe: Probe, server: grpc.aio.Server) -> None:
    """What `add_ProbeServiceServicer_to_server` would be."""
    codec = {
        "request_deserializer": Request.FromString,
        "response_serializer": Reply.SerializeToString,
    }
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(probe.unary, **codec),
        "Operate": grpc.unary_unary_rpc_method_handler(probe.unary, **codec),
        "Download": grpc.unary_stream_rpc_method_handler(probe.download, **codec),
        "Upload": grpc.stream_unary_rpc_method_handler(probe.upload, **codec),
        "Chat": grpc.stream_stream_rpc_method_handler(probe.chat, **codec),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(PROBE, handlers),))


def probe_service(probe: Probe, full_name: str = PROBE) -> Service:
    """`probe` as the server takes it."""
    return Service(probe, add_probe, full_name)


class ProbeClient:
    """What the generated stub would be; `raw` skips the request's serialisation."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        codec = {
            "request_serializer": Request.SerializeToString,
            "response_deserializer": Reply.FromString,
        }
        self.unary: Any = channel.unary_unary(f"/{PROBE}/Unary", **codec)
        self.operate: Any = channel.unary_unary(f"/{PROBE}/Operate", **codec)
        self.download: Any = channel.unary_stream(f"/{PROBE}/Download", **codec)
        self.upload: Any = channel.stream_unary(f"/{PROBE}/Upload", **codec)
        self.chat: Any = channel.stream_stream(f"/{PROBE}/Chat", **codec)
        self.raw: Any = channel.unary_unary(f"/{PROBE}/Unary")
        self.raw_chat: Any = channel.stream_stream(f"/{PROBE}/Chat")
        self.missing: Any = channel.unary_unary(f"/{PROBE}/Missing")
