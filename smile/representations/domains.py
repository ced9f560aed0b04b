"""Domains form a tree: a domain's rows are its own where they matter, else its parent's.

After hierarchical knowledge in HMI (VLDB Journal 2025, arXiv 2504.17449, section 4): a delta table
holds the n-grams that are frequent in a domain, and everything else falls through to the parent and
at last to general. Here a level is an index of its own, so that a batch walks the tree at once,
whatever domains its texts are of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from smile.errors import (
    AlreadyExists,
    DataCorrupted,
    FailedPrecondition,
    NotFound,
    SmileError,
)
from smile.model.ngram_rows import RowFormat, RowStore, RowStores
from smile.representations.lineage import check_name, check_over
from smile.representations.manifest import GENERAL, Origin
from smile.representations.rows import RowEncoder
from smile.representations.snapshot import Table


class GeneralView(Protocol):
    """The rows of the root, as of one moment."""

    @property
    def stores(self) -> RowStores: ...

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]: ...


class DomainTree:
    """Which domains there are, and their delta tables. Never changes, so threads may share it.

    Attributes:
        origin: Of the general rows.
        tables: The deltas, by number from 1 on.

    Args:
        deltas: One table a domain, in any order.

    Raises:
        FailedPrecondition: a delta is for another backbone or boundary, for other rows of its
            parent, or its parent is not there.
        AlreadyExists: two tables of one domain.
        DataCorrupted: a domain is its own ancestor, or a general table is among them.
    """

    def __init__(self, origin: Origin, deltas: Sequence[Table]) -> None:
        self.origin = origin
        self._tables: dict[str, Table] = {}
        self._stores: dict[tuple[int, RowFormat], RowStore] = {}
        for table in deltas:
            name = table.manifest.domain
            if name == GENERAL:
                raise DataCorrupted("a general table is no delta of a domain")
            if name in self._tables:
                raise AlreadyExists(f"domain '{name}' has two tables")
            self._tables[name] = table
        self.tables = tuple(self._tables.values())
        self._numbers = {name: number for number, name in enumerate((GENERAL, *self._tables))}
        self._parents = np.zeros(len(self._numbers), np.int32)
        for name, table in self._tables.items():
            if table.manifest.parent not in self._numbers:
                raise FailedPrecondition(
                    f"domain '{name}' needs its parent '{table.manifest.parent}', which has no "
                    f"table",
                    reason="DOMAIN_NOT_SERVED",
                )
            self._parents[self._numbers[name]] = self._numbers[table.manifest.parent]
        for name, table in self._tables.items():
            self._check_path(name)
            parent = self._tables.get(table.manifest.parent)
            check_over(table.manifest, None if parent is None else parent.manifest, origin)

    @property
    def names(self) -> tuple[str, ...]:
        """All domains, `general` first."""
        return tuple(self._numbers)

    def __contains__(self, name: str) -> bool:
        return name in self._numbers

    def number(self, name: str) -> int:
        """What stands for a domain in look-ups.

        Raises:
            NotFound: there is no such domain.
        """
        found = self._numbers.get(name)
        if found is None:
            raise NotFound(f"domain must be one of {', '.join(self.names)}, got '{name}'")
        return found

    def path(self, name: str) -> tuple[str, ...]:
        """A domain, its parent, and so on to `general`; see `number` for what it raises."""
        self.number(name)
        return tuple(self._up(name))

    def view(self, general: GeneralView, domains: Iterable[int] | None = None) -> DomainView:
        """Rows of all domains, or of these and those they fall through to, over general ones of
        this moment.
        """
        return DomainView(self, general, range(len(self._numbers)) if domains is None else domains)

    def digest(self, number: int) -> str:
        """Of all rows that texts of a domain get, but for general ones; empty for `general`."""
        return self.tables[number - 1].digest if number else ""

    def store(self, number: int, row_format: RowFormat) -> RowStore:
        """A domain's own rows, in a format; put into it once where they have another."""
        place = number, row_format
        if (found := self._stores.get(place)) is None:
            found = self._stores[place] = self.tables[number - 1].stored_as(row_format)
        return found

    def upwards(self, number: int) -> Iterator[int]:
        """A domain's number, its parent's, and so on to 0, which is general's."""
        while number:
            yield number
            number = int(self._parents[number])
        yield 0

    @property
    def parents(self) -> NDArray[np.int32]:
        """The number of each domain's parent [domains]; `general` is its own."""
        return self._parents

    def _check_path(self, name: str) -> None:
        seen: set[str] = set()
        for each in self._up(name):
            if each in seen:
                raise DataCorrupted(f"domain '{name}' is its own ancestor")
            seen.add(each)

    def _up(self, name: str) -> Iterator[str]:
        while name != GENERAL:
            yield name
            name = self._tables[name].manifest.parent
        yield GENERAL


class DomainView:
    """Rows of domains as of one moment. Never changes.

    Attributes:
        stores: The general rows, then each domain's own.
        general_rows: How many of the rows are general.
    """

    __slots__ = ("_firsts", "_general", "_tree", "general_rows", "stores")

    def __init__(self, tree: DomainTree, general: GeneralView, domains: Iterable[int]) -> None:
        row_format = general.stores.format
        there = sorted({each for number in domains for each in tree.upwards(number)} - {0})
        own = [tree.store(number, row_format) for number in there]
        self.stores = RowStores(row_format, (*general.stores.stores, *own))
        firsts = self.stores.firsts[len(general.stores.stores) :]
        self._firsts = dict(zip(there, firsts, strict=True))
        self.general_rows = general.stores.count
        self._general = general
        self._tree = tree

    def find(self, keys: NDArray[np.int64], domains: NDArray[np.int32]) -> NDArray[np.int32]:
        """The number of each n-gram's row in `stores` [n], new; -1 where there is none.

        Args:
            domains: [n], the number of the domain in which each is asked.
        """
        numbers = np.full(len(keys), -1, np.int32)
        asked, level = np.arange(len(keys)), domains
        while len(asked):
            for domain in np.unique(level).tolist():
                here = asked[level == domain]
                numbers[here] = self._found(domain, keys[here])
            on = (numbers[asked] < 0) & (level != 0)
            asked, level = asked[on], self._tree.parents[level[on]]
        return numbers

    def of(self, name: str) -> OneDomain:
        """The view of texts of one domain; see `DomainTree.number` for what it raises."""
        return OneDomain(self, self._tree.number(name))

    def _found(self, domain: int, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        if domain == 0:
            return self._general.find(keys)
        numbers = np.full(len(keys), -1, np.int32)
        self._tree.tables[domain - 1].index.find_into(keys, numbers, self._firsts[domain])
        return numbers


@dataclass(frozen=True, slots=True)
class OneDomain:
    """Rows of one domain's texts; implements `smile.model.materialized.RowView`."""

    view: DomainView
    domain: int

    @property
    def stores(self) -> RowStores:
        return self.view.stores

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int32]:
        return self.view.find(keys, np.full(len(keys), self.domain, np.int32))


@dataclass(frozen=True, slots=True)
class EffectiveRows:
    """The rows that texts of a domain get: its delta's, its ancestors', else general ones. What the
    delta of a child is compared with; implements `smile.representations.rows.RowEncoder`.

    Attributes:
        deltas: Of the domain, its parent and so on; none for `general`.
    """

    general: RowEncoder
    deltas: tuple[Table, ...] = ()

    @property
    def origin(self) -> Origin:
        return self.deltas[0].manifest.origin if self.deltas else self.general.origin

    @property
    def table_digest(self) -> str:
        """Of the domain's table; empty for `general`."""
        return self.deltas[0].digest if self.deltas else ""

    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        rows = np.empty((len(keys), row_format.row_bytes), np.uint8)
        left = np.arange(len(keys))
        for table in self.deltas:
            numbers = table.find(keys[left])
            found = numbers >= 0
            rows[left[found]] = _as(row_format, table.format, table.store.rows[numbers[found]])
            left = left[~found]
        if len(left):
            rows[left] = self.general.packed(keys[left], row_format)
        return rows


def usable(origin: Origin, deltas: Sequence[Table]) -> tuple[DomainTree, Mapping[str, SmileError]]:
    """The tree of those deltas that can be in one, parents before their children, and why the
    others cannot, by domain.
    """
    tree, faults = DomainTree(origin, ()), dict[str, SmileError]()
    waiting = list(deltas)
    while waiting:
        ready = [one for one in waiting if one.manifest.parent in tree.names]
        if not ready:
            break
        for one in ready:
            try:
                tree = DomainTree(origin, (*tree.tables, one))
            except SmileError as error:
                faults[one.manifest.domain] = error
        waiting = [one for one in waiting if not any(one is each for each in ready)]
    for one in waiting:
        faults[one.manifest.domain] = FailedPrecondition(
            f"domain '{one.manifest.domain}' needs its parent '{one.manifest.parent}', which has "
            f"no table that can be used",
            reason="DOMAIN_NOT_SERVED",
        )
    return tree, faults


def open_domain(name: str, folder: Path, known: Mapping[str, Table] | None = None) -> Table:
    """A domain's table. All of it is read and checked: nothing else has these rows.

    Args:
        known: Tables that are open already, by digest: they are not opened again.

    Raises:
        FailedPrecondition: there is none.
        DataCorrupted: it is another domain's, or a file is not what was written.
    """
    table = map_domain(name, folder)
    if known is not None and (same := known.get(table.digest)) is not None:
        return same
    return Table.open(folder, verify=True)


def map_domain(name: str, folder: Path) -> Table:
    """The same with rows that nobody has checked, for a look at a few that decides nothing: what it
    takes does not grow with them."""
    table = Table.open(folder)
    check_name(table.manifest, name, folder)
    return table


def _as(wanted: RowFormat, own: RowFormat, rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return rows if wanted == own else wanted.pack(own.unpack(rows))
