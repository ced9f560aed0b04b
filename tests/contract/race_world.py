"""What a race is judged by: modules whose answers are known, and what every name has pointed to."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
import torch

from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.packing import pack
from smile.model.reference import VplmModule
from smile.model.specs import ModuleSpec, Task
from smile.resources import Canary
from tests.contract.processor_world import (
    HEADS,
    PETS,
    StorageFake,
    module_spec,
    random_tensors,
)

SEED_STEP = 1_000  # between tenants: no two have the same weights
SERVING_ALIAS = "serving"


@dataclass(frozen=True)
class Stored:
    """A module as storage holds it."""

    spec: ModuleSpec
    data: bytes


class Oracle:
    """Reference modules by digest, and their answers, each computed once."""

    def __init__(self, backbone: Backbone) -> None:
        self.backbone = backbone
        self.modules: dict[str, VplmModule] = {}
        self.pools: dict[str, list[Stored]] = {}
        self._answers: dict[tuple[str, str], np.ndarray[Any, Any]] = {}

    def fill(self, tenant: str, count: int) -> None:
        """Make a tenant modules of all kinds and heads."""
        first = SEED_STEP * (1 + len(self.pools))
        pool = self.pools[tenant] = []
        for seed in range(first, first + count):
            pet, head = list(PETS)[seed % len(PETS)], list(HEADS)[seed % len(HEADS)]
            spec = module_spec(self.backbone, pet, head)
            tensors = random_tensors(spec, self.backbone, seed)
            pool.append(Stored(spec, weights.encode(tensors, spec)))
            module = VplmModule(self.backbone, spec, tensors)
            self.modules[_digest(pool[-1].data)] = module

    @torch.no_grad()
    def expected(self, digest: str, text: str) -> np.ndarray[Any, Any]:
        """Probabilities of all labels, or the embedding."""
        if (digest, text) not in self._answers:
            module = self.modules[digest]
            (tokens,) = self.backbone.tokenizer.encode([text], truncate=True)
            output = module(pack([tokens.ids]))
            if module.spec.head.task is not Task.EMBEDDING:
                output = torch.softmax(output, dim=-1)
            self._answers[digest, text] = output.numpy()
        return self._answers[digest, text]


@dataclass(frozen=True)
class Pointing:
    """What the names of one vPLM mean from `since` on.

    Attributes:
        serving: Versions its alias leads to: two where there is a canary, none where it is absent.
        versions: Digests by name.
    """

    since: float
    why: str
    serving: frozenset[str] = frozenset()
    versions: dict[str, str] = field(default_factory=dict)

    def reached(self, version: str | None) -> dict[str, str]:
        """What may answer a request for a version, or for the alias: digests by name."""
        names = self.serving if version is None else {version}
        return {name: self.versions[name] for name in names if name in self.versions}


class History:
    """Changes what storage holds, and remembers it. Storage is asked in the same thread, so that
    the times are exact.
    """

    def __init__(self, storage: StorageFake, oracle: Oracle, random: Random) -> None:
        self.storage = storage
        self._oracle = oracle
        self._random = random
        self._past: dict[str, list[Pointing]] = defaultdict(list)

    def versions(self, vplm: str) -> list[str]:
        """Names of the versions that there are."""
        return [name for name in self.storage.versions if name.startswith(f"{vplm}/versions/")]

    def change(self, vplm: str, what: str) -> None:
        """Do something to a vPLM, as far as it makes sense, and tell of it before and after."""
        self._tell(vplm)
        self._change(vplm, what)
        self._tell(vplm)

    def _tell(self, vplm: str) -> None:
        if self.storage.hub is not None:
            self.storage.hub.changed(vplm)

    def _change(self, vplm: str, what: str) -> None:
        number = len(self.versions(vplm))
        alias = (vplm, SERVING_ALIAS)
        match what:
            case "put" if number < 6:
                self._put(vplm)
            case "move" if number:
                self.storage.aliases[alias] = self._random.randint(1, number)
            case "split" if number:
                canary = Canary(self._random.randint(1, number), self._random.random())
                self.storage.canaries[alias] = canary
            case "whole":
                self.storage.canaries.pop(alias, None)
            case "delete":
                self.storage.delete(vplm)
            case "replace":
                self.storage.delete(vplm)
                self._put(vplm)
            case _:
                return
        self._note(vplm, what)

    def during(self, vplm: str, start: float, end: float) -> list[Pointing]:
        """All that was the case at some time between."""
        past = self._past[vplm]
        ends = [one.since for one in past[1:]] + [float("inf")]
        return [
            one for one, over in zip(past, ends, strict=True) if one.since <= end and over >= start
        ]

    def tail(self, vplm: str, now: float, count: int = 12) -> str:
        """The last that happened, for people."""
        told = [
            f"  {one.since - now:+8.3f} s {one.why:8} serving "
            f"{sorted(name.rpartition('/')[2] for name in one.serving)} of "
            f"{[(name.rpartition('/')[2], digest[:8]) for name, digest in one.versions.items()]}"
            for one in [one for one in self._past[vplm] if one.since <= now][-count:]
        ]
        return "\n".join([vplm, *told])

    def _put(self, vplm: str) -> None:
        stored = self._random.choice(self._oracle.pools[vplm.split("/")[1]])
        self.storage.put(vplm, stored.spec, stored.data)

    def _note(self, vplm: str, why: str) -> None:
        storage = self.storage
        serving = [storage.aliases.get((vplm, SERVING_ALIAS))]
        if canary := storage.canaries.get((vplm, SERVING_ALIAS)):
            serving.append(canary.version)
        versions = {name: storage.versions[name].digest for name in self.versions(vplm)}
        found = frozenset(f"{vplm}/versions/{number}" for number in serving if number)
        self._past[vplm].append(Pointing(time.monotonic(), why, found, versions))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
