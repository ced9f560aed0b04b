"""The device: backbones, and batches over them. The only file here that touches torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from services.processor.loader import Loaded
from services.processor.options import EngineOptions
from services.processor.requests import Batch, FloatArray
from smile.errors import DataCorrupted, FailedPrecondition
from smile.logs import get_logger
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.initial import initial_tensors
from smile.model.loaded import LoadedModule
from smile.model.specs import BackboneShape, HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.model.tokenizer import TextTokenizer

WARM_UP_TEXTS = ("a first text", "and a second one that is a little longer")


class Engine:
    """Backbones by name, ready after `load`. Immutable from then on; batches run one at a time."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._device = torch.device(options.device.value)
        self._engines: dict[str, BatchedEngine] = {}

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of the backbones served."""
        return tuple(self._engines)

    @property
    def text_tokens_max(self) -> int:
        """The longest text that any backbone takes, in tokens."""
        return max((self.shape(name).tokens_max for name in self._engines), default=1)

    def shape(self, backbone: str) -> BackboneShape:
        return self._engines[backbone].backbone.shape

    def tokenizer(self, backbone: str) -> TextTokenizer:
        return self._engines[backbone].backbone.tokenizer

    def load(self) -> None:
        """Read every backbone and run one batch over each. Blocks for seconds.

        Raises:
            FailedPrecondition: a backbone's files are not there, or there is no such device.
            InvalidArgument, DataCorrupted, Unavailable: its files cannot be used or fetched.
        """
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise FailedPrecondition("this machine has no CUDA device that torch can use")
        if self._options.threads:
            torch.set_num_threads(self._options.threads)
        for source in self._options.sources:
            if source.name in self._engines:
                continue  # an earlier try got this far
            backbone = Backbone.load(source.locate(), source.name).to(self._device)
            engine = BatchedEngine(backbone)
            self._warm_up(engine)
            self._engines[source.name] = engine
            get_logger().info("backbone ready", backbone=source.name, digest=backbone.digest)

    def check(self, spec: ModuleSpec) -> None:
        """Raises `FailedPrecondition` if the module's backbone is not served here."""
        engine = self._engines.get(spec.backbone)
        if engine is None:
            raise FailedPrecondition(
                f"backbone '{spec.backbone}' is not served here; served are "
                f"{', '.join(self._engines) or 'none'}",
                reason="BACKBONE_NOT_SERVED",
            )
        if engine.backbone.digest != spec.backbone_digest:
            raise FailedPrecondition(
                f"the vPLM was made for backbone '{spec.backbone}' with digest "
                f"{spec.backbone_digest}; served here is {engine.backbone.digest}",
                reason="BACKBONE_MISMATCH",
            )

    def load_module(self, spec: ModuleSpec, data: bytes) -> Loaded[LoadedModule]:
        """A stored module in serving form.

        Raises:
            FailedPrecondition: it was made for another backbone.
            DataCorrupted: the bytes are not a module of this spec, or not finite.
        """
        self.check(spec)
        backbone = self._engines[spec.backbone].backbone
        tensors = weights.decode(data, spec, backbone.shape)
        module = LoadedModule.load(spec, tensors, backbone)
        return Loaded(module, module.nbytes)

    def run(self, batch: Batch, modules: Sequence[LoadedModule]) -> list[tuple[FloatArray, ...]]:
        """The outputs of every chunk of the batch, one array per text; `modules` are its parts'.

        Raises:
            DataCorrupted: an output is not finite, as finite weights can bring about too.
        """
        items = [
            (module, text)
            for part, module in zip(batch.parts, modules, strict=True)
            for chunk in part.chunks
            for text in chunk.texts
        ]
        mixed = MixedBatch.build(items, device=self._device)
        outputs = [output.values for output in self._engines[batch.backbone].run(mixed)]
        assert len(outputs) == len(items), "one output per text"
        _check_finite(outputs)
        found = iter(outputs)
        return [tuple(next(found) for _ in chunk.texts) for chunk in batch.chunks]

    def _warm_up(self, engine: BatchedEngine) -> None:
        backbone = engine.backbone
        module = _warm_up_module(backbone)
        texts = backbone.tokenizer.encode(WARM_UP_TEXTS)
        engine.run(MixedBatch.build([(module, text) for text in texts], device=self._device))


def _check_finite(outputs: Sequence[FloatArray]) -> None:
    if not all(np.isfinite(values).all() for values in outputs):
        raise DataCorrupted(
            "the module's answer has numbers that are not finite: its weights are unusable",
            reason="OUTPUT_NOT_FINITE",
        )


def _warm_up_module(backbone: Backbone) -> LoadedModule:
    spec = ModuleSpec(
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        pet=PetSpec(PetKind.PFEIFFER, rank=8).placed(backbone.shape),
        head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("no", "yes")),
    )
    return LoadedModule.load(spec, initial_tensors(spec, backbone.shape, seed=0), backbone)
