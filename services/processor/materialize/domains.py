"""The domains of one backbone: a folder with one of each, taken in while batches go on.

What is served is replaced whole: a batch keeps the tree that it was looked up in. Once a domain is
served it stays, until another state of the folder has it, too: nothing that is asked for goes away
between a request's admission and its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from smile.errors import DataCorrupted, FailedPrecondition, SmileError
from smile.logs import get_logger
from smile.model.ngram_rows import RowStores
from smile.representations import places
from smile.representations.domains import DomainTree, DomainView, open_domain, usable
from smile.representations.manifest import MANIFEST_FILE, Origin
from smile.representations.snapshot import Table

Stamp: TypeAlias = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class InDomains:
    """Rows of a batch whose texts are of several domains; implements `materialized.RowView`.

    Attributes:
        domains: [tokens] int32, the number of each token's domain.
    """

    view: DomainView
    domains: NDArray[np.int32]

    @property
    def stores(self) -> RowStores:
        return self.view.stores

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return self.view.find(keys, self.domains)


class ServedDomains:
    """Threads may share it; only one at a time may call `renew`.

    Args:
        origin: Of the general rows.
        folder: Where domains lie; None: there are none.
    """

    def __init__(self, origin: Origin, folder: Path | None = None) -> None:
        self._origin = origin
        self._folder = folder
        self._tree = DomainTree(origin, ())
        self._stamp: Stamp = ()

    @property
    def tree(self) -> DomainTree:
        """The domains of now. Never changes."""
        return self._tree

    def check(self, domain: str) -> None:
        """Raises `FailedPrecondition` if there is no such domain here; empty is `general`."""
        tree = self._tree
        if domain and domain not in tree:
            raise FailedPrecondition(
                f"domain '{domain}' is not served here; served are {', '.join(tree.names)}",
                reason="DOMAIN_NOT_SERVED",
                metadata={"domain": domain},
            )

    def renew(self) -> None:
        """Takes in what the folder has now, if that is another than at the last time. A domain that
        cannot be used is left out, with those under it, and logged.

        Raises:
            FailedPrecondition: a domain that is served could not be any more: all stay as they are.
            OSError: the folder cannot be read.
        """
        if self._folder is None or (stamp := _stamp(self._folder)) == self._stamp:
            return
        self._stamp = stamp
        known = {table.digest: table for table in self._tree.tables}
        tables, faults = _opened(self._folder, known)
        tree, unfit = usable(self._origin, tables)
        faults |= unfit
        if lost := sorted(set(self._tree.names) - set(tree.names)):
            why = faults[lost[0]].message if lost[0] in faults else "it is not there any more"
            raise FailedPrecondition(
                f"the domains at {self._folder} are not taken in, '{lost[0]}' would be lost: {why}",
                reason="DOMAIN_NOT_SERVED",
            )
        self._tree = tree
        for name, error in faults.items():
            get_logger().error("a domain cannot be used", domain=name, why=error.message)
        get_logger().info("domains opened", domains=", ".join(tree.names))


def _stamp(folder: Path) -> Stamp:
    """What tells one state of the folder from another without reading tables."""
    found = []
    for name, place in places.domains_in(folder):
        stat = (place / places.TABLE / MANIFEST_FILE).stat()
        found.append((name, stat.st_ino, stat.st_mtime_ns))
    return tuple(found)


def _opened(folder: Path, known: Mapping[str, Table]) -> tuple[list[Table], dict[str, SmileError]]:
    """The folder's tables, those that are open already as they are, and why others cannot be."""
    tables: list[Table] = []
    faults: dict[str, SmileError] = {}
    for name, place in places.domains_in(folder):
        try:
            tables.append(open_domain(name, place / places.TABLE, known))
        except SmileError as error:
            faults[name] = error
        except OSError as error:
            faults[name] = DataCorrupted(f"domain '{name}' at {place} cannot be read: {error}")
    return tables, faults
