"""What this trainer has to stand in for backbones' lower layers, where a job asks for that.

The service reads an encoder's facts alone, without torch, to refuse at once what its workers could
not do. Workers compute rows, or look them up; either way they are those that answers stand on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock

from smile.errors import FailedPrecondition, SmileError, Unavailable
from smile.logs import get_logger
from smile.model.row_dtype import RowDtype
from smile.model.skip.artifact import EncoderFile
from smile.model.specs import ModuleSpec
from smile.representations import manifest
from smile.resources import TrainingStates
from smile.standins import INCLUDED, StandInPlace, encoder_file


@dataclass(frozen=True, slots=True)
class StandIn:
    """Stands in for one backbone's lower layers.

    Attributes:
        dtype: How rows are rounded: as the table's are, and those that are not in it alike.
        place: Where encoder and table lie.
    """

    encoder: EncoderFile
    dtype: RowDtype
    place: StandInPlace


class StandIns:
    """By backbone; each encoder is read when first asked for, and kept. Threads may share it.

    Args:
        places: Of those backbones that have any.
    """

    def __init__(self, places: Mapping[str, StandInPlace] | None = None) -> None:
        self._places = dict(places or {})
        self._encoders: dict[str, EncoderFile] = {}
        self._lock = Lock()

    def check(self, spec: ModuleSpec, states: TrainingStates) -> None:
        """Whether such a module can be trained on such states here. Blocks.

        Raises:
            FailedPrecondition: there is no local encoder for its backbone (NOT_MATERIALIZED), the
                module begins below the boundary (MODULE_BELOW_BOUNDARY), or its domain has rows of
                its own (DOMAIN_NOT_TRAINED).
            Unavailable: the encoder is not there (yet).
        """
        if states is not TrainingStates.EXACT:
            self._fitting(spec, states)

    def of(self, spec: ModuleSpec, states: TrainingStates) -> StandIn | None:
        """What stands in; None where exact states are asked for and there is nothing. Blocks.

        Raises:
            FailedPrecondition, Unavailable: as `check`.
        """
        if states is not TrainingStates.EXACT:
            return self._with_format(spec, self._fitting(spec, states))
        try:
            return self._with_format(spec, self._fitting(spec, states))
        except SmileError:  # the other kind's metrics are left out
            return None

    def _fitting(self, spec: ModuleSpec, states: TrainingStates) -> EncoderFile:
        place = self._places.get(spec.backbone)
        if place is None:
            raise FailedPrecondition(
                f"this trainer has no local encoder for backbone '{spec.backbone}', so states must "
                f"be exact, got {states}; see SMILE_TRAINER_SKIP",
                reason="NOT_MATERIALIZED",
            )
        if spec.domain:
            raise FailedPrecondition(
                f"the vPLM is of domain '{spec.domain}', and trainers have general rows alone: "
                f"states must be exact, got {states}",
                reason="DOMAIN_NOT_TRAINED",
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

    def _with_format(self, spec: ModuleSpec, encoder: EncoderFile) -> StandIn:
        place = self._places[spec.backbone]
        if place.table is None:
            return StandIn(encoder, RowDtype.FLOAT16, place)
        try:
            return StandIn(encoder, RowDtype(manifest.read(place.table).dtype), place)
        except (SmileError, OSError, ValueError) as error:
            get_logger().warning("rows are computed: no table", why=str(error))
            return StandIn(encoder, RowDtype.FLOAT16, place)
