"""What this trainer has to stand in for backbones' lower layers, where a job asks for that.

The service reads manifests and an encoder's facts alone, without torch, to refuse at once what its
workers could not do. Workers compute rows, or look them up; either way they are those that answers
stand on: of a domain its own, and general ones where it has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

from smile.errors import FailedPrecondition, SmileError, Unavailable
from smile.logs import get_logger
from smile.model.row_dtype import RowDtype
from smile.model.skip.artifact import EncoderFile
from smile.model.specs import ModuleSpec
from smile.representations import manifest
from smile.representations.lineage import Level, lineage
from smile.representations.manifest import GENERAL, Origin
from smile.resources import TrainingStates
from smile.standins import INCLUDED, StandInPlace, encoder_file

if TYPE_CHECKING:
    from smile.representations.domains import DomainTree


@dataclass(frozen=True, slots=True)
class DomainRows:
    """The rows that a domain has before general ones.

    Attributes:
        tree: Of the domain and those above it.
    """

    name: str
    tree: DomainTree

    @property
    def digest(self) -> str:
        """Of the domain's table, which names its parent's, and so on."""
        return self.tree.digest(self.tree.number(self.name))


@dataclass(frozen=True, slots=True)
class StandIn:
    """Stands in for the lower layers below one module.

    Attributes:
        dtype: How rows are rounded: as the table's are, and those that are not in it alike.
        place: Where encoder and table lie.
        domain: The vPLM's; None: it has general rows alone.
    """

    encoder: EncoderFile
    dtype: RowDtype
    place: StandInPlace
    domain: DomainRows | None = None


class StandIns:
    """By backbone; each encoder is read when first asked for, and kept. Threads may share it.

    Args:
        places: Of those backbones that have any.
    """

    def __init__(self, places: Mapping[str, StandInPlace] | None = None) -> None:
        self._places = dict(places or {})
        self._encoders: dict[str, EncoderFile] = {}
        self._lock = Lock()

    def __contains__(self, backbone: str) -> bool:
        return backbone in self._places

    def check(self, spec: ModuleSpec, states: TrainingStates) -> None:
        """Whether such a module can be trained on such states here. Blocks.

        Raises:
            FailedPrecondition: there is no local encoder for its backbone (NOT_MATERIALIZED), the
                module begins below the boundary (MODULE_BELOW_BOUNDARY), or its domain is not here,
                or cannot be used (DOMAIN_NOT_SERVED).
            Unavailable: the encoder or the folder of domains is not there (yet).
        """
        if states is not TrainingStates.EXACT:
            self._levels(spec, self._fitting(spec))

    def of(self, spec: ModuleSpec) -> StandIn:
        """What stands in below such a module, a domain's tables open. Blocks, for a second for each
        gigabyte of these. For a worker.

        Raises:
            FailedPrecondition, Unavailable: as `check`, where states are not exact.
        """
        encoder = self._fitting(spec)
        levels = self._levels(spec, encoder)
        domain = self._opened(spec, encoder, levels) if levels else None
        return self._made(spec, encoder, domain)

    def glance(self, spec: ModuleSpec) -> StandIn:
        """The same for a look that decides nothing: a domain's rows are not all read and checked.

        Raises:
            FailedPrecondition, Unavailable, DataCorrupted, OSError: it cannot be had.
        """
        from smile.representations.domains import DomainTree, map_domain  # noqa: PLC0415 -- torch

        encoder = self._fitting(spec)
        levels = self._levels(spec, encoder)
        tables = [map_domain(level.stated.domain, level.folder) for level in levels]
        tree = DomainTree(_origin(encoder), tables)
        return self._made(spec, encoder, DomainRows(spec.domain, tree) if levels else None)

    def _made(self, spec: ModuleSpec, encoder: EncoderFile, domain: DomainRows | None) -> StandIn:
        place = self._places[spec.backbone]
        return StandIn(encoder, _dtype(place), place, domain)

    def _fitting(self, spec: ModuleSpec) -> EncoderFile:
        place = self._places.get(spec.backbone)
        if place is None:
            raise FailedPrecondition(
                f"this trainer has no local encoder for backbone '{spec.backbone}', so states must "
                f"be exact; see SMILE_TRAINER_SKIP",
                reason="NOT_MATERIALIZED",
            )
        if place.encoder != INCLUDED and not place.encoder.is_file():
            raise Unavailable(
                f"the local encoder of backbone '{spec.backbone}' is not at {place.encoder} (yet)",
                reason="ENCODER_MISSING",
            )
        with self._lock:
            if spec.backbone not in self._encoders:
                found = encoder_file(place.encoder, spec.backbone, spec.backbone_digest)
                self._encoders[spec.backbone] = found
            encoder = self._encoders[spec.backbone]
        encoder.check(spec.backbone_digest)
        encoder.facts.form.check_pet(spec.pet)
        return encoder

    def _levels(self, spec: ModuleSpec, encoder: EncoderFile) -> tuple[Level, ...]:
        """The tables of the module's domain and of those above it, as they lie there now."""
        if spec.domain in ("", GENERAL):
            return ()
        folder = self._places[spec.backbone].domains
        if folder is None:
            raise _not_served(spec.domain, "this trainer has no domains of its backbone")
        if not folder.is_dir():
            raise Unavailable(
                f"the domains of backbone '{spec.backbone}' are not at {folder} (yet)",
                reason="DOMAINS_MISSING",
            )
        try:
            return lineage(folder, spec.domain, _origin(encoder))
        except SmileError as error:
            raise _not_served(spec.domain, error.message) from error
        except OSError as error:
            raise _not_served(spec.domain, f"{folder} cannot be read: {error}") from error

    def _opened(
        self, spec: ModuleSpec, encoder: EncoderFile, levels: tuple[Level, ...]
    ) -> DomainRows:
        from smile.representations.domains import DomainTree, open_domain  # noqa: PLC0415 -- torch

        try:
            tables = [open_domain(level.stated.domain, level.folder) for level in levels]
            return DomainRows(spec.domain, DomainTree(_origin(encoder), tables))
        except (SmileError, OSError) as error:
            if self._levels(spec, encoder) != levels:
                raise Unavailable(
                    f"domain '{spec.domain}' was replaced while it was read",
                    reason="DOMAINS_MISSING",
                ) from error
            why = error.message if isinstance(error, SmileError) else str(error)
            raise _not_served(spec.domain, why) from error


def _not_served(domain: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"domain '{domain}' cannot be trained on here, so states must be exact: {why}; see "
        f"SMILE_TRAINER_DOMAINS",
        reason="DOMAIN_NOT_SERVED",
        metadata={"domain": domain},
    )


def _origin(encoder: EncoderFile) -> Origin:
    """Of the general rows."""
    facts = encoder.facts
    form = facts.form
    return Origin(facts.backbone, facts.backbone_digest, encoder.digest, form.boundary, form.hidden)


def _dtype(place: StandInPlace) -> RowDtype:
    if place.table is None:
        return RowDtype.FLOAT16
    try:
        return RowDtype(manifest.read(place.table).dtype)
    except (SmileError, OSError, ValueError) as error:
        get_logger().warning("rows are computed: no table", why=str(error))
        return RowDtype.FLOAT16
