"""Renting processors: what the processor keeps for a vPLM."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Unpack

from smile import codec
from smile.client import options as o
from smile.client.calls import PAGE_ROWS, READ_TIMEOUT_S, WRITE_TIMEOUT_S, Calls, asking, every
from smile.names import ProcessorName
from smile.processors import Processor, ProcessorTerms
from smile.resources import Exactness
from smile.v1 import processor_pb2


class RentingCalls(Calls):
    """Renting, releasing and listing processors."""

    async def rent(self, vplm: str, **options: Unpack[o.RentOptions]) -> Processor:
        """Rents a processor for a vPLM, or changes the terms of the one that is rented; the same
        call again has no further effect. Keywords: `RentOptions`.

        The processor keeps what is rented in its memory: after a restart of it, rent again.

        Raises:
            NotFound: there is no such vPLM.
            QuotaExceeded: the tenant has rented as many as it may.
            Overloaded: all tenants together have, or what is pinned takes its share of the device.
        """
        o.known(options, o.RentOptions)
        default = ProcessorTerms()
        terms = ProcessorTerms(
            weight=options.get("weight", default.weight),
            concurrency_max=options.get("concurrency_max", default.concurrency_max),
            texts_per_s=options.get("texts_per_s", default.texts_per_s),
            burst_texts=options.get("burst_texts", default.burst_texts),
            pinned=options.get("pinned", default.pinned),
            idle_s=options.get("idle_s", default.idle_s),
            exactness=_exactness(options.get("exactness")),
        )
        with asking():
            request = processor_pb2.RentProcessorRequest(
                vplm=str(self._scope.vplm(vplm)),
                terms=codec.terms_to_pb(terms),
                wait=options.get("wait", False),
            )
            rented = await self._connection.processor.RentProcessor(
                request, timeout=options.get("timeout", WRITE_TIMEOUT_S)
            )
        self._connection.pace.forget(request.vplm)
        return codec.processor_from_pb(rented)

    async def release(self, vplm: str, *, timeout: float | None = None) -> None:
        """Gives a vPLM's processor back; its module leaves memory once no request uses it. Raises
        `NotFound` where none is rented.
        """
        with asking():
            await self._connection.processor.ReleaseProcessor(
                processor_pb2.ReleaseProcessorRequest(name=self._processor_name(vplm)),
                timeout=timeout or WRITE_TIMEOUT_S,
            )

    async def processor(self, vplm: str, *, timeout: float | None = None) -> Processor:
        """A vPLM's processor. Raises `NotFound` where none is rented."""
        with asking():
            found = await self._connection.processor.GetProcessor(
                processor_pb2.GetProcessorRequest(name=self._processor_name(vplm)),
                timeout=timeout or READ_TIMEOUT_S,
            )
        return codec.processor_from_pb(found)

    async def processors(
        self, *, page_size: int = PAGE_ROWS, timeout: float | None = None
    ) -> AsyncGenerator[Processor, None]:
        """The tenant's rented processors by id, read page by page; `timeout` is for a page."""
        parent = str(self._scope.parent())

        async def page(token: str) -> tuple[list[Processor], str]:
            with asking():
                response = await self._connection.processor.ListProcessors(
                    processor_pb2.ListProcessorsRequest(
                        parent=parent, page_size=page_size, page_token=token
                    ),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            found = [codec.processor_from_pb(each) for each in response.processors]
            return found, response.next_page_token

        async for processor in every(page):
            yield processor

    def _processor_name(self, vplm: str) -> str:
        name = self._scope.vplm(vplm)
        return str(ProcessorName(name.tenant, name.vplm))


def _exactness(given: Exactness | str | None) -> Exactness | None:
    return None if given is None else o.choice(Exactness, given, "exactness")
