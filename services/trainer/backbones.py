"""The backbones this trainer can train on: their shapes for checks, themselves for workers."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import TYPE_CHECKING, Generic, TypeVar

from smile.errors import FailedPrecondition
from smile.model.sources import BackboneInfo, BackboneSource, describe
from smile.model.specs import ModuleSpec

if TYPE_CHECKING:
    from smile.model.backbone import Backbone

Found = TypeVar("Found")


class Backbones(Generic[Found]):
    """Backbones by name, each read when first asked for and kept. Blocks; use it off the loop."""

    def __init__(
        self, sources: tuple[BackboneSource, ...], read: Callable[[BackboneSource], Found]
    ) -> None:
        self._sources = {source.name: source for source in sources}
        self._read = read
        self._found: dict[str, Found] = {}
        self._lock = Lock()

    def of(self, spec: ModuleSpec, digest: Callable[[Found], str]) -> Found:
        """The backbone that a module was made for.

        Raises:
            FailedPrecondition: it is not here (BACKBONE_UNKNOWN), or is another one by the same
                name (BACKBONE_MISMATCH).
        """
        if spec.backbone not in self._sources:
            raise FailedPrecondition(
                f"backbone '{spec.backbone}' is not offered by this trainer, it has "
                f"{', '.join(sorted(self._sources))}",
                reason="BACKBONE_UNKNOWN",
            )
        with self._lock:
            if spec.backbone not in self._found:
                self._found[spec.backbone] = self._read(self._sources[spec.backbone])
            found = self._found[spec.backbone]
        if digest(found) != spec.backbone_digest:
            raise FailedPrecondition(
                f"the vPLM was made for backbone '{spec.backbone}' with digest "
                f"{spec.backbone_digest}, this trainer has {digest(found)}; make the vPLM again",
                reason="BACKBONE_MISMATCH",
            )
        return found


def described(sources: tuple[BackboneSource, ...]) -> Backbones[BackboneInfo]:
    """Backbones as facts, without torch."""
    return Backbones(sources, lambda source: describe(source.locate()))


def loaded(sources: tuple[BackboneSource, ...]) -> Backbones[Backbone]:
    """Backbones in memory, for a worker."""
    from smile.model.backbone import Backbone  # noqa: PLC0415 -- the service needs no torch

    return Backbones(sources, lambda source: Backbone.load(source.locate(), source.name))
