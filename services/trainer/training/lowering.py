"""Rows of n-grams in place of lower layers, for a training: looked up, or computed as answers have
them computed."""

from __future__ import annotations

from collections.abc import Callable

from services.trainer.standins import StandIn
from services.trainer.training.precision import Precision
from services.trainer.training.states import DTYPES, MakeLower
from smile.errors import SmileError
from smile.logs import get_logger
from smile.model.backbone import Backbone
from smile.model.materialized import NoRows, RowsBelow, RowView
from smile.model.ngram_rows import RowFormat
from smile.model.skip.rows import EncoderRows
from smile.model.skip.words import WordParts
from smile.representations.snapshot import Table


def lowering(stand_in: StandIn, backbone: Backbone, precision: Precision) -> MakeLower:
    """Makes what stands in, on the CPU; with a table, a second for each gigabyte of it. For MiniLM
    in float32, 12 KB of each different word of the texts, as long as it is kept."""

    def made() -> RowsBelow:
        rows = _rows(stand_in, backbone, precision)
        return _below(stand_in, rows, _general(stand_in, rows))

    return made


def late_lowering(
    found: Callable[[], StandIn], backbone: Backbone, precision: Precision
) -> MakeLower:
    """The same for a look at few texts: of what is found when it is asked for, and general rows are
    computed to the same bits instead of a table being read.

    Args:
        found: What it raises, the result raises.
    """

    def made() -> RowsBelow:
        stand_in = found()
        rows = _rows(stand_in, backbone, precision)
        return _below(stand_in, rows, _computed(stand_in, rows))

    return made


def _rows(stand_in: StandIn, backbone: Backbone, precision: Precision) -> EncoderRows:
    dtype = DTYPES[precision]
    return EncoderRows.of(stand_in.encoder, backbone, dtype, parts=WordParts.ASKED)


def _below(stand_in: StandIn, rows: EncoderRows, general: RowView) -> RowsBelow:
    domain = stand_in.domain
    if domain is None:
        return RowsBelow(rows.encoder, general)
    own = domain.tree.view(general, [domain.tree.number(domain.name)])
    return RowsBelow(rows.encoder, own.of(domain.name))


def _computed(stand_in: StandIn, rows: EncoderRows) -> NoRows:
    return NoRows(RowFormat(stand_in.dtype, rows.origin.width))


def _general(stand_in: StandIn, rows: EncoderRows) -> RowView:
    """The table's rows; without one that can be used here, none: each is computed to the same
    bits."""
    none = _computed(stand_in, rows)
    folder = stand_in.place.table
    if folder is None:
        return none
    try:
        table = Table.open(folder, rows.origin, verify=True)  # a wrong row is a wrong state
    except (SmileError, OSError) as error:
        get_logger().warning("a table cannot be used, rows are computed", why=str(error))
        return none
    if why := table.manifest.origin.same_bits(rows.origin):
        get_logger().warning("rows are computed, not looked up", table=str(folder), why=why)
        return none
    return table if table.format == none.stores.format else none
