"""The areas put together: a file here with an `AREA` is all that a service needs."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable

from tests.contract.every_rpc.area import Area, Requests
from tests.contract.every_rpc.belongings import Belongings

__all__ = [
    "FREE",
    "NAMES",
    "OUTPUT",
    "REQUESTS",
    "SHARED",
    "UNUSABLE",
    "Area",
    "Requests",
    "holding",
]


def _areas() -> list[Area]:
    modules = [
        importlib.import_module(f"{__name__}.{each.name}")
        for each in pkgutil.iter_modules(__path__)
    ]
    areas: list[Area] = [module.AREA for module in modules]
    return areas


def _full(names: Iterable[frozenset[str]]) -> frozenset[str]:
    return frozenset(f"smile.v1.{name}" for each in names for name in each)


_AREAS = _areas()
REQUESTS: dict[str, Callable[[Belongings, bytes], Requests]] = {
    name: build for area in _AREAS for name, build in area.requests.items()
}
_HOLDING = {place: build for area in _AREAS for place, build in area.holding.items()}
NAMES = _full(area.names for area in _AREAS)
SHARED = _full(area.shared for area in _AREAS)
OUTPUT = _full(area.output for area in _AREAS)
UNUSABLE = _full(area.unusable for area in _AREAS)
FREE = frozenset(name for area in _AREAS for name in area.free)


def holding(method: str, where: tuple[str, ...]) -> Callable[[Belongings, bytes], Requests]:
    """What makes a request of `method` that has something at `where`."""
    return _HOLDING.get((method, ".".join(where)), REQUESTS[method])
