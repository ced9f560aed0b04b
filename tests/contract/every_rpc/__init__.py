"""Every RPC of the platform, read from its contracts: how to call it, and with what of whose.

A new RPC that takes a string nobody has classified, or that has no valid request in its area,
fails `test_isolation.py`. Areas are in `areas/`, one file a service.
"""

from tests.contract.every_rpc.areas import (
    FREE,
    NAMES,
    OUTPUT,
    REQUESTS,
    SHARED,
    UNUSABLE,
    Area,
    Requests,
    holding,
)
from tests.contract.every_rpc.belongings import LABELS, ROWS, Belongings, furnish, stock
from tests.contract.every_rpc.contracts import (
    METHODS,
    TENANT_METHODS,
    UNARY_METHODS,
    Path,
    label,
    path_of,
    roles,
)
from tests.contract.every_rpc.fields import name_paths, string_fields, value_at, with_value
from tests.contract.every_rpc.messages import (
    create_job,
    create_vplm,
    declared,
    import_vplm,
    new_id,
    put_version,
    upload,
)
from tests.contract.every_rpc.wire import Outcome, Wire, wire

__all__ = [
    "FREE",
    "LABELS",
    "METHODS",
    "NAMES",
    "OUTPUT",
    "REQUESTS",
    "ROWS",
    "SHARED",
    "TENANT_METHODS",
    "UNARY_METHODS",
    "UNUSABLE",
    "Area",
    "Belongings",
    "Outcome",
    "Path",
    "Requests",
    "Wire",
    "create_job",
    "create_vplm",
    "declared",
    "furnish",
    "holding",
    "import_vplm",
    "label",
    "name_paths",
    "new_id",
    "path_of",
    "put_version",
    "roles",
    "stock",
    "string_fields",
    "upload",
    "value_at",
    "wire",
    "with_value",
]
