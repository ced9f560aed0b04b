"""Any sequence of catalog operations does what a dictionary would do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.storage.aliases import AliasMove
from services.storage.catalog import VplmChange
from services.storage.usage import UsageAsked
from smile.errors import AlreadyExists, NotFound
from smile.names import VersionName, VplmName
from smile.resources import SERVING, Canary
from tests.unit.services.storage.world import (
    ACME,
    World,
    chunks,
    declared,
    joined,
    module,
    new_id,
    new_version,
    new_vplm,
    vplm,
)

T = TypeVar("T")
NAMES = st.sampled_from(["a", "a-b", "b"])
SEEDS = st.integers(0, 2)
ALIASES = st.sampled_from([SERVING, "staging"])


@dataclass
class Model:
    """What a vPLM should be."""

    uid: str
    versions: list[str]
    aliases: dict[str, int] = field(default_factory=lambda: {SERVING: 1})
    canaries: dict[str, Canary] = field(default_factory=dict)
    display_name: str = "Topics"


class CatalogMachine(RuleBasedStateMachine):
    """Drives the catalog and the model side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.model: dict[str, Model] = {}
        self.uids: set[str] = set()

    def run(self, act: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(act)

    def teardown(self) -> None:
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    @initialize()
    def tenant(self) -> None:
        self.run(self.world.tenant())

    @rule(name=NAMES, seed=SEEDS, times=st.integers(1, 2))
    def create(self, name: str, seed: int, times: int) -> None:
        data = module(seed)
        new = new_vplm(vplm(name), data)
        if name in self.model:
            with pytest.raises(AlreadyExists):
                self.run(self.world.catalog.commit(new, chunks(data)))
            return
        for _ in range(times):
            made = self.run(self.world.catalog.commit(new, chunks(data)))
        assert made.uid not in self.uids
        self.uids.add(made.uid)
        self.model[name] = Model(made.uid, [declared(data).digest])

    @rule(name=NAMES, seed=SEEDS, times=st.integers(1, 2))
    def put(self, name: str, seed: int, times: int) -> None:
        data = module(seed)
        new = new_version(data, vplm(name))
        for _ in range(times):
            if name not in self.model:
                with pytest.raises(NotFound):
                    self.run(self.world.versions.put(new, chunks(data)))
                return
            made = self.run(self.world.versions.put(new, chunks(data)))
        self.model[name].versions.append(declared(data).digest)
        assert made.number == len(self.model[name].versions)

    @rule(name=NAMES, alias=ALIASES, version=st.integers(1, 4), times=st.integers(1, 2))
    def move_alias(self, name: str, alias: str, version: int, times: int) -> None:
        move = AliasMove(vplm(name), alias, version, new_id())
        known = self.model.get(name)
        for _ in range(times):
            if known is None or version > len(known.versions):
                with pytest.raises(NotFound):
                    self.run(self.world.catalog.set_alias(move))
                return
            self.run(self.world.catalog.set_alias(move))
            known.aliases[alias] = version
            known.canaries.pop(alias, None)

    @rule(name=NAMES, alias=ALIASES, versions=st.permutations([1, 2, 3]), weight=st.floats(0, 1))
    def split_alias(self, name: str, alias: str, versions: list[int], weight: float) -> None:
        first, second, _ = versions
        canary = Canary(second, weight)
        move = AliasMove(vplm(name), alias, first, new_id(), canary=canary)
        known = self.model.get(name)
        if known is None or max(first, second) > len(known.versions):
            with pytest.raises(NotFound):
                self.run(self.world.catalog.set_alias(move))
            return
        self.run(self.world.catalog.set_alias(move))
        known.aliases[alias], known.canaries[alias] = first, canary

    @rule(name=NAMES, display_name=st.text(max_size=20))
    def rename(self, name: str, display_name: str) -> None:
        change = VplmChange(vplm(name), new_id(), display_name=display_name)
        if name not in self.model:
            with pytest.raises(NotFound):
                self.run(self.world.catalog.update(change))
            return
        self.run(self.world.catalog.update(change))
        self.model[name].display_name = display_name

    @rule(name=NAMES, times=st.integers(1, 2))
    def delete(self, name: str, times: int) -> None:
        request_id = new_id()
        if self.model.pop(name, None) is None:
            with pytest.raises(NotFound):
                self.run(self.world.delete(vplm(name), "", request_id))
            return
        for _ in range(times):
            self.run(self.world.delete(vplm(name), "", request_id))

    @invariant()
    def catalog_is_the_model(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        listed, _ = await self.world.catalog.list_page(ACME, 100, "")
        assert [VplmName.parse(found.name).vplm for found in listed] == sorted(self.model)
        for found in listed:
            name = VplmName.parse(found.name)
            known = self.model[name.vplm]
            assert (found.uid, found.aliases) == (known.uid, known.aliases)
            assert found.canaries == known.canaries
            assert found.display_name == known.display_name
            versions, _ = await self.world.versions.list_page(name, 100, "")
            assert [version.digest for version in reversed(versions)] == known.versions
            for alias, number in known.aliases.items():
                resolved = await self.world.versions.resolve(name, alias)
                canary = known.canaries.get(alias)
                assert resolved.number == number
                assert (resolved.canary and resolved.canary.number) == (canary and canary.version)
                assert resolved.canary_weight == (canary.weight if canary else 0)
            _, stream = await self.world.versions.open(VersionName(name, len(known.versions)))
            assert declared(await joined(stream)).digest == known.versions[-1]
        usage = await self.world.usage.of(ACME, UsageAsked(100)) if self.uids else None
        if usage is not None:
            assert usage.vplm_count == len(self.model)
            for row in usage.vplms:
                known = self.model[VplmName.parse(row.name).vplm]
                assert row.versions == len(known.versions)
                assert row.size_bytes == len(module()) * len(set(known.versions))


CatalogMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestCatalog = CatalogMachine.TestCase
