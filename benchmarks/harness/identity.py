"""Proof that each vPLM is answered by its own weights, also in the middle of everybody's requests.

A new vPLM's PET module changes nothing yet. So a sample gets a second version of random weights,
which answers quite differently, and is asked twice: alone, and amid requests to many others. The
answers must agree, must come from the version uploaded, and must differ from the first version's.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import workload
from benchmarks.harness.fleet import Callers, Member
from smile import Classification, Embedding
from smile.model import toy_modules, weights
from smile.model.initial import StoredArray, initial_tensors
from smile.model.specs import BackboneShape, ModuleSpec
from smile.resources import InferResult

VALUES_STD = 0.02
TOLERANCE = 1e-4
TEXTS = 4
AMONG = 200
SEEN_S_MAX = 5.0  # how long a moved alias may go unseen, with some to spare


@dataclass(frozen=True, slots=True)
class Identity:
    """How many vPLMs were checked, and which answers were wrong."""

    checked: int
    wrong: int


class IdentityCheck:
    """Over a fleet that is being served."""

    def __init__(self, callers: Callers, members: Sequence[Member]) -> None:
        self._callers = callers
        self._members = members
        self._texts = workload.texts(TEXTS, start=5_000)

    async def run(self, count: int) -> Identity:
        """Check `count` members, chosen over the whole fleet."""
        step = max(1, len(self._members) // count)
        sample = self._members[::step][:count]
        before = [await self._callers.ask(member, self._texts) for member in sample]
        uploaded = [await self._upload(member) for member in sample]
        await asyncio.sleep(SEEN_S_MAX)
        alone = [await self._callers.ask(member, self._texts) for member in sample]
        amid = await self._amid(sample)
        wrong = sum(
            not (_same(one, other) and one.version == name and not _same(one, first))
            for first, one, other, name in zip(before, alone, amid, uploaded, strict=True)
        )
        return Identity(len(sample), wrong)

    async def _amid(self, sample: Sequence[Member]) -> list[InferResult]:
        others = [
            self._callers.ask(self._members[int(pick)], self._texts[:1])
            for pick in workload.uniform(AMONG, len(self._members), seed=23)
        ]
        asked = [self._callers.ask(member, self._texts) for member in sample]
        found = await asyncio.gather(*asked, *others)
        return list(found[: len(sample)])

    async def _upload(self, member: Member) -> str:
        """The name of a version of random weights, which serves from now on."""
        client = self._callers.client(member.tenant)
        vplm = await client.vplm(member.vplm)
        version = await client.version(member.vplm)
        backbone = await client.backbone(version.spec.backbone)
        tensors = random_tensors(version.spec, backbone.shape, seed=hash(vplm.name) % 2**32)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "module.safetensors"
            path.write_bytes(weights.encode(tensors, version.spec))
            uploaded = await client.upload_version(member.vplm, path)
        number = int(uploaded.name.rpartition("/")[2])
        await client.set_alias(member.vplm, "serving", number)
        return uploaded.name


def random_tensors(spec: ModuleSpec, shape: BackboneShape, seed: int) -> dict[str, StoredArray]:
    """A module whose tensors are all random: what is zero in a new one is drawn too."""
    random = np.random.default_rng(seed)
    found = toy_modules.random_tensors(spec, shape, seed=seed)  # masks, if it has any
    for name, array in initial_tensors(spec, shape, seed).items():
        if array.any():
            found[name] = array
        elif array.dtype.kind == "f":
            values = VALUES_STD * random.standard_normal(array.shape, np.float32)
            found[name] = values.astype(array.dtype)
    return found


def _same(one: InferResult, other: InferResult) -> bool:
    return one.version == other.version and all(
        np.allclose(a, b, atol=TOLERANCE) for a, b in zip(_values(one), _values(other), strict=True)
    )


def _values(result: InferResult) -> list[NDArray[np.float64]]:
    return [_numbers(prediction.result) for prediction in result.predictions]


def _numbers(result: object) -> NDArray[np.float64]:
    if isinstance(result, Embedding):
        return np.array(result.values)
    assert isinstance(result, Classification), "the fleet classifies or embeds"
    return np.array([score.score for score in sorted(result.scores, key=lambda s: s.label)])
