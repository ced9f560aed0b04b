"""Renting processors: terms, and the module where they want it.

Renting checks that there is such a vPLM, takes effect at once and warms the module beside; idle
ones are unloaded. All of it is memory of this process: after a restart nothing is rented, and
whoever rents again, as the SDK's call may be repeated, gets the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from services.processor.lanes.dispatch import Dispatch
from services.processor.memory.demand import Demand
from services.processor.memory.residency import Temperature
from services.processor.rentals import Rental, Rentals
from services.processor.requests import LOOK_UPS_MORE, VERSION_GONE, Asked, Target
from services.processor.resolver import Resolver
from smile import pages
from smile.errors import SmileError
from smile.logs import get_logger
from smile.model.specs import ModuleSpec
from smile.names import ProcessorName, TenantId, VplmName
from smile.processors import Processor, ProcessorState, ProcessorTerms
from smile.resources import SERVING, Exactness

WARMED_AT_A_TIME = 4
KEEP_EVERY_S = 1.0
_STATES = {
    Temperature.COLD: ProcessorState.COLD,
    Temperature.WARM: ProcessorState.WARM,
    Temperature.HOT: ProcessorState.HOT,
}
_NEARNESS = list(ProcessorState)

Module = TypeVar("Module")


@dataclass(frozen=True, slots=True)
class Estate(Generic[Module]):
    """What renting works with.

    Attributes:
        check: Raises where a module's spec cannot be served here.
        sweep_s: Modules that were not rented leave memory when idle for so long.
    """

    rentals: Rentals
    resolver: Resolver
    demand: Demand[Module]
    dispatch: Dispatch[Module]
    check: Callable[[ModuleSpec, Exactness], None]
    clock: Callable[[], float]
    sweep_s: float


class Renting(Generic[Module]):
    """Rents, warms, lists and lets go. For use on the event loop only."""

    def __init__(self, estate: Estate[Module]) -> None:
        self._estate = estate
        self._turn = asyncio.Semaphore(WARMED_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()

    async def rent(self, vplm: VplmName, terms: ProcessorTerms, *, wait: bool) -> Processor:
        """Rent a processor, or change its terms. With `wait`, its module is in memory then.

        Raises:
            NotFound: there is no such vPLM.
            FailedPrecondition: its backbone is not served here.
            QuotaExceeded, Overloaded: as many are rented as may be, or pinned.
        """
        estate = self._estate
        target = await estate.resolver.target(Asked(vplm, SERVING))
        estate.check(target.spec, terms.exactness or Exactness.EXACT)
        rental = estate.rentals.rent(vplm, terms, estate.clock(), datetime.now(UTC))
        if not terms.pinned:
            self._unpin(rental)
        if wait:
            await self._warm(rental, target)
        else:
            self._start(self._warm_beside(rental, target))
        return self._view(rental)

    def release(self, name: ProcessorName) -> None:
        """Give a processor back; its module leaves memory once no request uses it. Raises
        `NotFound`.
        """
        rental = self._estate.rentals.release(name)
        self._unpin(rental)
        self._unload(rental)

    def get(self, name: ProcessorName) -> Processor:
        """Raises `NotFound`."""
        return self._view(self._estate.rentals.get(name))

    def page(self, tenant: TenantId, size: int, token: str) -> tuple[list[Processor], str]:
        """A page of a tenant's processors by id, and the token of the next."""
        listing = f"processors of {tenant}"
        after = pages.place_of(token, listing)
        found, more = self._estate.rentals.page(tenant, after, pages.page_size(size))
        following = pages.token_for(listing, found[-1].vplm.vplm) if more else ""
        return [self._view(rental) for rental in found], following

    def start(self) -> None:
        """Look after what is rented from now on."""
        self._start(self._keep())

    async def close(self) -> None:
        """End all that goes on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def keep_once(self) -> None:
        """Unload who has gone idle, and hold on the device what is pinned: after an alias has
        moved, that is another version."""
        estate = self._estate
        for rental in estate.rentals.gone_idle(estate.clock()):
            self._unload(rental)
        estate.demand.sweep(estate.sweep_s)
        for rental in estate.rentals.pinned():
            try:
                target = await estate.resolver.target(Asked(rental.vplm, SERVING))
                if rental.pinned != target.key or not estate.dispatch.pin(target.key):
                    await self._warm(rental, target)
            except SmileError as error:
                get_logger().info("not pinned", vplm=str(rental.vplm), why=error.message)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_EVERY_S)
            try:
                await self.keep_once()
            except Exception:
                get_logger().exception("looking after rented processors failed")

    async def _warm_beside(self, rental: Rental, target: Target) -> None:
        try:
            async with self._turn:
                await self._warm(rental, target)
        except SmileError as error:
            get_logger().warning("not warmed", version=str(target.name), why=error.message)

    async def _warm(self, rental: Rental, target: Target) -> None:
        estate = self._estate
        if estate.rentals.of(rental.vplm) is not rental:
            return  # released meanwhile
        target = await self._fetched(target)
        if estate.rentals.of(rental.vplm) is not rental:
            estate.demand.unload(target.key)
            return
        rental.serves(target)
        if rental.terms.pinned and estate.dispatch.pin(target.key):
            if rental.pinned != target.key:
                self._unpin(rental)
            rental.pinned = target.key

    async def _fetched(self, target: Target) -> Target:
        """The vPLM's module, in memory; another version's where that one was gone already."""
        for _ in range(LOOK_UPS_MORE):
            try:
                await self._estate.demand.prefetch(target)
                return target
            except VERSION_GONE:
                target = await self._estate.resolver.renewed(Asked(target.name.vplm, SERVING))
                self._estate.check(target.spec, Exactness.EXACT)
        await self._estate.demand.prefetch(target)
        return target

    def _unpin(self, rental: Rental) -> None:
        if rental.pinned is not None:
            self._estate.demand.unpin(rental.pinned)
            rental.pinned = None

    def _unload(self, rental: Rental) -> None:
        for key in rental.keys:
            self._estate.demand.unload(key)
        rental.keys.clear()

    def _state(self, rental: Rental) -> ProcessorState:
        states = [_STATES[self._estate.dispatch.temperature(key)] for key in rental.keys]
        return max(states, key=_NEARNESS.index, default=ProcessorState.COLD)

    def _view(self, rental: Rental) -> Processor:
        ago = timedelta(seconds=self._estate.clock() - rental.last_used)
        used = rental.requests > 0
        return Processor(
            name=str(ProcessorName(rental.vplm.tenant, rental.vplm.vplm)),
            vplm=str(rental.vplm),
            terms=rental.terms,
            state=self._state(rental),
            counters=rental.counters,
            create_time=rental.create_time,
            last_used_time=datetime.now(UTC) - ago if used else None,
        )

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, context=Context())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
