"""Watches over the object store: what it can do, found out at start, and whether it is well."""

from __future__ import annotations

from dataclasses import replace

from services.storage.records import now
from smile.errors import SmileError
from smile.logs import get_logger
from smile.maintenance import Signing, StoreMode, StoreReport
from smile.store.capabilities import check_modes, mode_reports, probe_capabilities
from smile.store.objects import ProbedStore


class Storekeeper:
    """Probes a store: everything at first and after it was away, else whether it answers.

    Args:
        wanted: Modes that must be granted before storage is ready.
        signing: How records are signed, for the report.
    """

    def __init__(
        self, store: ProbedStore, wanted: frozenset[StoreMode], signing: Signing | None = None
    ) -> None:
        self._store = store
        self._wanted = wanted | {StoreMode.RECORDS}
        self._report = StoreReport(
            store.name, modes=mode_reports((), self._wanted), signing=signing or Signing()
        )
        self._known = False

    @property
    def report(self) -> StoreReport:
        """What is known now."""
        return self._report

    async def check(self) -> None:
        """Whether the store can be used as it is wanted.

        Raises:
            Unavailable: it does not answer.
            FailedPrecondition: it lacks what a mode needs, or refuses access.
        """
        try:
            await self._check()
        except SmileError:
            self._known = False
            raise

    async def _check(self) -> None:
        if self._known:
            return await self._store.probe()
        await self._store.prepare()
        seen = await probe_capabilities(self._store)
        modes = mode_reports(seen, self._wanted)
        self._report = replace(self._report, probe_time=now(), capabilities=seen, modes=modes)
        get_logger().info(
            "object store probed",
            store=self._store.name,
            capabilities=[str(each.capability) for each in seen if each.granted],
            missing={str(each.capability): each.detail for each in seen if not each.granted},
            modes=[str(mode.mode) for mode in modes if mode.granted],
        )
        check_modes(self._store.name, seen, modes)
        await self._store.probe()
        self._known = True
        return None
