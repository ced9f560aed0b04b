"""Rows of n-grams in place of lower layers, for a training: looked up, or computed as answers have
them computed."""

from __future__ import annotations

import torch

from services.trainer.standins import StandIn
from services.trainer.training.precision import Precision
from services.trainer.training.states import DTYPES, MakeLower
from smile.errors import SmileError
from smile.logs import get_logger
from smile.model.backbone import Backbone
from smile.model.materialized import NoRows, RowsBelow, RowView
from smile.model.ngram_rows import RowFormat
from smile.model.skip.rows import EncoderRows
from smile.representations.snapshot import Table


def lowering(stand_in: StandIn, backbone: Backbone, precision: Precision) -> MakeLower:
    """Makes what stands in, on the CPU: half a second each time, and for MiniLM in float32 375 MB
    as long as it is kept."""
    return lambda: _made(stand_in, backbone, DTYPES[precision])


def _made(stand_in: StandIn, backbone: Backbone, dtype: torch.dtype) -> RowsBelow:
    rows = EncoderRows.of(stand_in.encoder, backbone, dtype)
    general, domain = _general(stand_in, rows), stand_in.domain
    if domain is None:
        return RowsBelow(rows.encoder, general)
    own = domain.tree.view(general, [domain.tree.number(domain.name)])
    return RowsBelow(rows.encoder, own.of(domain.name))


def _general(stand_in: StandIn, rows: EncoderRows) -> RowView:
    """The table's rows; without one that can be used here, none: each is computed to the same
    bits."""
    none = NoRows(RowFormat(stand_in.dtype, rows.origin.width))
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
