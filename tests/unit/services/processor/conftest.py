"""Chunks and keys in a line each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest

from services.processor.memory.policy import LeastRecentlyUsed
from services.processor.memory.residency import InPlace, Memory
from services.processor.memory.space import Space
from services.processor.requests import Chunk, ModuleKey
from smile.model.specs import PetKind
from smile.model.tokenizer import TokenizedText
from smile.names import VplmName, tenant_id


def key(name: str, tenant: str = "acme") -> ModuleKey:
    return ModuleKey(tenant_id(tenant), name, "")


def counted(bytes_max: int, device_bytes_max: int | None = None) -> Memory[Any]:
    """Memory that is only counted, to the byte; least recently used first."""
    device = bytes_max if device_bytes_max is None else device_bytes_max
    return Memory(
        host=Space(bytes_max, slab_bytes=bytes_max, granule=1),
        device=Space(device, slab_bytes=device, granule=1),
        host_policy=LeastRecentlyUsed(),
        device_policy=LeastRecentlyUsed(),
        mover=InPlace(),
        pinned_share=0.5,
    )


def text(tokens: int) -> TokenizedText:
    return TokenizedText([0] * tokens)


@dataclass
class Maker:
    """Makes chunks, numbered in order."""

    numbers: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def chunk(
        self,
        tenant: str = "acme",
        tokens: int = 10,
        *,
        module: str = "m",
        deadline: float = 100.0,
        request: int | None = None,
        backbone: str = "toy",
        texts: int = 1,
        due: float | None = None,
        kind: PetKind = PetKind.NONE,
        vplm: VplmName | None = None,
    ) -> Chunk:
        number = next(self.numbers)
        each = [tokens // texts] * (texts - 1)
        return Chunk(
            number=number,
            request=number if request is None else request,
            tenant=tenant_id(tenant),
            backbone=backbone,
            module=key(module, tenant),
            due=deadline if due is None else due,
            deadline=deadline,
            texts=tuple(text(count) for count in [*each, tokens - sum(each)]),
            tokens=tokens,
            kind=kind,
            vplm=vplm,
        )


@pytest.fixture
def make() -> Maker:
    return Maker()
