"""`ProcessorService` on the wire: decode, ask the pipeline, encode."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import Any, Protocol, TypeAlias

import grpc
from google.protobuf import empty_pb2

from services.processor.requests import Asked, FanoutRequest, InferenceRequest
from smile import codec
from smile.errors import DeadlineRequired, InvalidArgument, NotFound
from smile.names import ProcessorName, TenantId, TenantName, VersionName, VplmName
from smile.processors import Processor, ProcessorTerms
from smile.resources import SERVING, Exactness, FanoutResult, InferResult, ProcessorStats
from smile.rpc.auth import current_principal, own
from smile.rpc.context import current_request_id, remaining_s
from smile.v1 import processor_pb2, processor_pb2_grpc, resources_pb2

NAMES_REMEMBERED_MAX = 20_000
FULL_NAME = processor_pb2.DESCRIPTOR.services_by_name["ProcessorService"].full_name

_Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class Answering(Protocol):
    """What answers: the pipeline."""

    async def infer(self, request: InferenceRequest) -> InferResult: ...
    async def infer_fanout(self, request: FanoutRequest) -> FanoutResult: ...
    def stats(self) -> ProcessorStats: ...


class Letting(Protocol):
    """What rents processors."""

    async def rent(self, vplm: VplmName, terms: ProcessorTerms, *, wait: bool) -> Processor: ...
    def release(self, name: ProcessorName) -> None: ...
    def get(self, name: ProcessorName) -> Processor: ...
    def page(self, tenant: TenantId, size: int, token: str) -> tuple[list[Processor], str]: ...


class ProcessorServicer(processor_pb2_grpc.ProcessorServiceServicer):
    """Answers tenants about their texts."""

    def __init__(self, pipeline: Answering, renting: Letting) -> None:
        self._pipeline = pipeline
        self._renting = renting

    async def Infer(
        self, request: processor_pb2.InferRequest, context: _Context
    ) -> processor_pb2.InferResponse:
        return codec.infer_to_pb(await self._pipeline.infer(_decoded(request)))

    async def InferFanout(
        self, request: processor_pb2.InferFanoutRequest, context: _Context
    ) -> processor_pb2.InferFanoutResponse:
        return codec.fanout_to_pb(await self._pipeline.infer_fanout(_decoded_fanout(request)))

    async def RentProcessor(
        self, request: processor_pb2.RentProcessorRequest, context: _Context
    ) -> processor_pb2.Processor:
        vplm = own(request.vplm, VplmName.parse, current_principal())
        terms = codec.terms_from_pb(request.terms)
        return codec.processor_to_pb(await self._renting.rent(vplm, terms, wait=request.wait))

    async def ReleaseProcessor(
        self, request: processor_pb2.ReleaseProcessorRequest, context: _Context
    ) -> empty_pb2.Empty:
        self._renting.release(own(request.name, ProcessorName.parse, current_principal()))
        return empty_pb2.Empty()

    async def GetProcessor(
        self, request: processor_pb2.GetProcessorRequest, context: _Context
    ) -> processor_pb2.Processor:
        name = own(request.name, ProcessorName.parse, current_principal())
        return codec.processor_to_pb(self._renting.get(name))

    async def ListProcessors(
        self, request: processor_pb2.ListProcessorsRequest, context: _Context
    ) -> processor_pb2.ListProcessorsResponse:
        parent = own(request.parent, TenantName.parse, current_principal())
        found, token = self._renting.page(parent.tenant, request.page_size, request.page_token)
        return processor_pb2.ListProcessorsResponse(
            processors=[codec.processor_to_pb(each) for each in found], next_page_token=token
        )

    async def GetStats(
        self, request: processor_pb2.GetStatsRequest, context: _Context
    ) -> processor_pb2.ProcessorStats:
        return codec.stats_to_pb(self._pipeline.stats())


def _decoded(request: processor_pb2.InferRequest) -> InferenceRequest:
    """The request with its tenant taken from the caller's key, and its deadline from the call."""
    arrived = time.monotonic()
    deadline = arrived + _left_s()
    asked = _asked(request.name, request.alias)
    return InferenceRequest(
        vplm=asked.vplm,
        texts=tuple(request.texts),
        arrived=arrived,
        deadline=deadline,
        version=asked.version,
        alias=asked.alias,
        truncate=request.truncate,
        top_k=request.top_k,
        routing_key=request.routing_key or current_request_id() or "",
        exactness=_exactness(request.exactness),
    )


def _exactness(number: resources_pb2.Exactness.ValueType) -> Exactness | None:
    """None: the request does not say."""
    return codec.EXACTNESSES.from_pb(number) if number else None


def _decoded_fanout(request: processor_pb2.InferFanoutRequest) -> FanoutRequest:
    """The same for a fan-out, where a name that is another tenant's is that entry's answer."""
    arrived = time.monotonic()
    deadline = arrived + _left_s()
    tenant = current_principal().tenant
    assert tenant is not None, "only tenants may call this"
    return FanoutRequest(
        tenant=tenant,
        asked=tuple(_asked_or_why_not(target) for target in request.targets),
        text=request.text,
        arrived=arrived,
        deadline=deadline,
        truncate=request.truncate,
        top_k=request.top_k,
        routing_key=request.routing_key or current_request_id() or "",
        exactness=_exactness(request.exactness),
    )


def _left_s() -> float:
    if (left_s := remaining_s()) is None:
        raise DeadlineRequired("every call needs a deadline; set a timeout on the client")
    return left_s


def _asked_or_why_not(target: processor_pb2.FanoutTarget) -> Asked | NotFound:
    try:
        return _asked(target.name, target.alias)
    except NotFound as error:
        return error


def _asked(text: str, alias: str) -> Asked:
    """What a name and an alias stand for, of the caller's own. Raises `NotFound`."""
    name = own(text, _parse, current_principal())
    if isinstance(name, VplmName):
        return Asked(name, alias or SERVING)
    if alias:
        raise InvalidArgument(
            f"a request names a version or an alias, got version {name.number} and alias '{alias}'",
            violations=[("alias", "must be empty where `name` is a version's")],
        )
    return Asked(name.vplm, SERVING, name.number)


@lru_cache(maxsize=NAMES_REMEMBERED_MAX)  # every request has one, and callers repeat them
def _parse(text: str) -> VplmName | VersionName:
    """A vPLM's name or a version's, told apart by their length in parts."""
    return VersionName.parse(text) if text.count("/") > 3 else VplmName.parse(text)
