"""Requests of the processor."""

from __future__ import annotations

from smile.v1 import processor_pb2
from tests.contract.every_rpc.area import Area

AREA = Area(
    requests={
        "ProcessorService.Infer": lambda own, _: processor_pb2.InferRequest(
            name=own.vplm(), texts=["a good day"]
        ),
        "ProcessorService.InferFanout": lambda own, _: processor_pb2.InferFanoutRequest(
            targets=[processor_pb2.FanoutTarget(name=own.vplm())], text="a good day"
        ),
        "ProcessorService.RentProcessor": lambda own, _: processor_pb2.RentProcessorRequest(
            vplm=own.vplm(), terms=processor_pb2.ProcessorTerms(weight=2)
        ),
        "ProcessorService.ReleaseProcessor": lambda own, _: processor_pb2.ReleaseProcessorRequest(
            name=own.processor("doomed")
        ),
        "ProcessorService.GetProcessor": lambda own, _: processor_pb2.GetProcessorRequest(
            name=own.processor()
        ),
        "ProcessorService.ListProcessors": lambda own, _: processor_pb2.ListProcessorsRequest(
            parent=own.parent
        ),
        "ProcessorService.GetStats": lambda own, _: processor_pb2.GetStatsRequest(),
    },
    names=frozenset(
        {
            "InferRequest.name",
            "FanoutTarget.name",
            "RentProcessorRequest.vplm",
            "ReleaseProcessorRequest.name",
            "GetProcessorRequest.name",
            "ListProcessorsRequest.parent",
        }
    ),
    free=frozenset(
        {
            "texts",
            "text",
            "label",
            "pair",
            "routing_key",
            "environment",
        }
    ),
)
