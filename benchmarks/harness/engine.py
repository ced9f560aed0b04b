"""SMILE's engine in this process: the processor's own `Engine`, without queue or network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import SecretStr
from torch.nn import functional

from benchmarks.harness.fleet import BACKBONE, KINDS, LABELS, PETS
from benchmarks.harness.identity import random_tensors
from services.processor.config import ProcessorSettings
from services.processor.engine import Engine
from services.processor.options import Precision
from services.processor.requests import Batch, Chunk, Materialized, ModuleKey
from smile.errors import SmileError
from smile.model import weights
from smile.model.batch import CPU
from smile.model.kernels import kernels_for
from smile.model.layout import projection_shape
from smile.model.loaded import LoadedModule
from smile.model.sources import describe
from smile.model.specs import BackboneShape, HeadSpec, ModuleSpec, PetSpec, Projection, Task
from smile.model.tokenizer import TokenizedText
from smile.names import tenant_id
from smile.resources import Exactness
from smile.rpc.keys import KeyKind, new_key

Item = TypeVar("Item")
TENANT = tenant_id("bench")
OUTPUT_TEXTS = 32  # of a batch that is asked for its answers


def settings() -> ProcessorSettings:
    """The processor's defaults."""
    return ProcessorSettings(service_key=SecretStr(new_key(KeyKind.SERVICE).text))


@dataclass(frozen=True, slots=True)
class Asked:
    """One text for one module."""

    module: int
    text: TokenizedText


@dataclass(frozen=True, slots=True)
class Formed:
    """A batch as the processor's scheduler hands it on, with the modules of its parts."""

    batch: Batch
    modules: tuple[LoadedModule, ...]


class EngineDriver:
    """A loaded engine and modules in it, numbered in order of loading."""

    def __init__(self, precision: Precision) -> None:
        self.settings = settings()
        self.engine = Engine(replace(self.settings.engine_options, precision=precision))
        self.engine.load()
        self.shape = self.engine.shape(BACKBONE)
        self._modules: list[LoadedModule] = []
        self._keys: list[ModuleKey] = []
        self._digest = self._backbone_digest()

    def load(self, pets: Sequence[PetSpec], done: Callable[[], None] = lambda: None) -> None:
        """A module of random weights, none of them an identity, for each of `pets`."""
        for pet in pets:
            number = len(self._modules)
            spec = ModuleSpec(
                backbone=BACKBONE,
                backbone_digest=self._digest,
                pet=pet.placed(self.shape),
                head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, LABELS[: 2 + number % 4]),
            )
            data = weights.encode(random_tensors(spec, self.shape, number), spec)
            self._modules.append(self.engine.load_module(spec, data))
            self._keys.append(ModuleKey(TENANT, weights.sha256_hex(data), str(number)))
            done()

    def tokenize(self, texts: Sequence[str]) -> list[TokenizedText]:
        return list(self.engine.tokenizer(BACKBONE).encode(texts))

    def form(self, asked: Sequence[Asked], *, texts_max: int = 0) -> list[Formed]:
        """Batches in the order asked, within the processor's limits; `texts_max` 0: its own."""
        texts_max = texts_max or self.settings.batch_texts_max
        found: list[list[Asked]] = [[]]
        tokens = 0
        for one in asked:
            size = len(one.text)
            full = tokens + size > self.settings.batch_tokens_max or len(found[-1]) >= texts_max
            if found[-1] and full:
                found.append([])
                tokens = 0
            found[-1].append(one)
            tokens += size
        return [self._formed(batch) for batch in found]

    def answer(self, batches: Sequence[Formed]) -> None:
        """Prepare and compute the batches, side by side on as many streams as the processor's."""

        def compute(formed: Formed) -> None:
            self.engine.compute(self.engine.prepare(formed.batch, formed.modules))

        side_by_side(self.settings.stream_count, compute, batches)

    def _formed(self, asked: Sequence[Asked]) -> Formed:
        chunks = [
            Chunk(
                number=number,
                request=number,
                tenant=TENANT,
                backbone=BACKBONE,
                module=self._keys[one.module],
                due=0.0,
                deadline=0.0,
                texts=(one.text,),
                tokens=len(one.text),
            )
            for number, one in enumerate(asked)
        ]
        batch = Batch.of(BACKBONE, chunks)
        modules = tuple(self._modules[int(part.module.spec_sha256)] for part in batch.parts)
        return Formed(batch, modules)

    def _backbone_digest(self) -> str:
        source = next(source for source in self.settings.sources if source.name == BACKBONE)
        return describe(source.locate()).digest


def outputs(
    engine: Engine,
    module: LoadedModule,
    texts: Sequence[TokenizedText],
    exactness: Exactness,
    domain: str = "",
) -> list[NDArray[np.float32]]:
    """What a module answers to texts, in batches; raises what it is refused with."""
    key = ModuleKey(TENANT, "", "")
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(texts), OUTPUT_TEXTS):
        some = tuple(texts[start : start + OUTPUT_TEXTS])
        chunk = Chunk(
            number=start,
            request=start,
            tenant=TENANT,
            backbone=BACKBONE,
            module=key,
            due=0.0,
            deadline=0.0,
            texts=some,
            tokens=sum(map(len, some)),
            exactness=exactness,
            domain=domain,
        )
        prepared = engine.prepare(Batch.of(BACKBONE, [chunk]), [module])
        (computed,) = engine.compute(prepared)
        if isinstance(computed, SmileError):
            raise computed
        found += computed.outputs if isinstance(computed, Materialized) else computed
    return found


def mixed_pets(count: int) -> list[PetSpec]:
    """`count` PET modules in the claim's shares."""
    return [PETS[KINDS[number % len(KINDS)]] for number in range(count)]


def side_by_side(streams: int, act: Callable[[Item], None], items: Sequence[Item]) -> None:
    """`act` on every item in order, by so many threads that each take the next one."""
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(act, items))


class DenseAlone:
    """The backbone's matrix products and nothing else: the roof over every engine.

    For every batch's number of tokens: the products of every layer with bias, on weights of their
    own as in the backbone. By torch, six a layer, and by the engine's own kernels, where query, key
    and value are one: the roof is whichever is the faster. Attention's products are left out on
    both sides. As the engine, batches run side by side, a thread each.
    """

    def __init__(self, shape: BackboneShape, dtype: torch.dtype, streams: int) -> None:
        self._shape = shape
        self._streams = streams
        self._layers = [
            [self._weights(projection, dtype) for projection in Projection]
            for _ in range(shape.layers)
        ]
        self._inputs = {
            width: torch.randn(shape.tokens_max * 64, width).to(dtype)
            for width in (shape.hidden, shape.intermediate)
        }
        self._kernels = kernels_for(CPU, dtype)
        self._packed = [
            [self._kernels.dense.pack(*one) for one in self._joined(layer)]
            for layer in self._layers
        ]

    def flops(self, tokens: int) -> float:
        """Floating-point operations for so many tokens."""
        per_token = sum(
            2 * a * b for a, b in (projection_shape(p, self._shape) for p in Projection)
        )
        return float(per_token * self._shape.layers * tokens)

    def seconds(self, batches: Sequence[int]) -> float:
        """Seconds for batches of so many tokens, by the faster of the two products."""
        return min(self._seconds(batches, batch) for batch in (self._by_torch, self._by_kernels))

    def _seconds(self, batches: Sequence[int], batch: Callable[[int], None]) -> float:
        started = time.perf_counter()
        side_by_side(self._streams, batch, batches)
        return time.perf_counter() - started

    @torch.inference_mode()
    def _by_torch(self, tokens: int) -> None:
        for layer in self._layers:
            for weight, bias in layer:
                functional.linear(self._inputs[weight.shape[1]][:tokens], weight, bias)

    @torch.inference_mode()
    def _by_kernels(self, tokens: int) -> None:
        widths = {one.outputs for one in self._packed[0]}
        outs = {
            width: self._inputs[self._shape.hidden].new_empty(tokens, width) for width in widths
        }
        with self._kernels.together() as kernels:
            for layer in self._packed:
                for one in layer:
                    x = self._inputs[one.inputs][:tokens]
                    kernels.dense.linear(x, one, out=outs[one.outputs])

    @staticmethod
    def _joined(
        layer: Sequence[tuple[torch.Tensor, torch.Tensor]],
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The layer's products with the first three, of the same rows, as one."""
        weights, biases = zip(*layer[:3], strict=True)
        return [(torch.cat(weights), torch.cat(biases)), *layer[3:]]

    def _weights(
        self, projection: Projection, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, inputs = projection_shape(projection, self._shape)
        return torch.randn(outputs, inputs).to(dtype), torch.randn(outputs).to(dtype)
