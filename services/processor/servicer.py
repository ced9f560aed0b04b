"""`ProcessorService` on the wire: decode, ask the pipeline, encode."""

from __future__ import annotations

import time
from typing import Any, Protocol, TypeAlias

import grpc

from services.processor.requests import InferenceRequest
from smile import codec
from smile.errors import DeadlineRequired, InvalidArgument
from smile.names import VersionName, VplmName
from smile.resources import SERVING, InferResult, ProcessorStats
from smile.rpc.auth import current_principal, own
from smile.rpc.context import current_request_id, remaining_s
from smile.v1 import processor_pb2, processor_pb2_grpc

FULL_NAME = processor_pb2.DESCRIPTOR.services_by_name["ProcessorService"].full_name

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Answering(Protocol):
    """What answers: the pipeline."""

    async def infer(self, request: InferenceRequest) -> InferResult: ...
    def stats(self) -> ProcessorStats: ...


class ProcessorServicer(processor_pb2_grpc.ProcessorServiceServicer):
    """Answers tenants about their texts."""

    def __init__(self, pipeline: Answering) -> None:
        self._pipeline = pipeline

    async def Infer(
        self, request: processor_pb2.InferRequest, context: _Context
    ) -> processor_pb2.InferResponse:
        return codec.infer_to_pb(await self._pipeline.infer(_decoded(request)))

    async def GetStats(
        self, request: processor_pb2.GetStatsRequest, context: _Context
    ) -> processor_pb2.ProcessorStats:
        return codec.stats_to_pb(self._pipeline.stats())


def _decoded(request: processor_pb2.InferRequest) -> InferenceRequest:
    """The request with its tenant taken from the caller's key, and its deadline from the call."""
    arrived = time.monotonic()
    if (left_s := remaining_s()) is None:
        raise DeadlineRequired("every call needs a deadline; set a timeout on the client")
    name = own(request.name, _parse, current_principal())
    version = name.number if isinstance(name, VersionName) else None
    if version is not None and request.alias:
        raise InvalidArgument(
            f"a request names a version or an alias, got version {version} and alias "
            f"'{request.alias}'",
            violations=[("alias", "must be empty where `name` is a version's")],
        )
    return InferenceRequest(
        vplm=name.vplm if isinstance(name, VersionName) else name,
        texts=tuple(request.texts),
        arrived=arrived,
        deadline=arrived + left_s,
        version=version,
        alias=request.alias or SERVING,
        truncate=request.truncate,
        top_k=request.top_k,
        routing_key=request.routing_key or current_request_id() or "",
    )


def _parse(text: str) -> VplmName | VersionName:
    """A vPLM's name or a version's, told apart by their length in parts."""
    return VersionName.parse(text) if text.count("/") > 3 else VplmName.parse(text)
