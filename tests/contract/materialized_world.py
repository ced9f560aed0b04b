"""A local encoder with random weights for the toy backbone, tables of it, and what they answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from services.processor.materialize.standin import StandIn
from smile.model.backbone import Backbone
from smile.model.kernels import kernels_for
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.packing import pack
from smile.model.reference import VplmModule
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFacts
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm
from smile.model.skip.ngrams import ngram_keys
from smile.model.specs import Task
from smile.representations import build, places
from smile.representations.build import TableWish, count_texts
from smile.representations.delta import DeltaRules, Encoders, build_delta
from smile.representations.domains import EffectiveRows
from smile.representations.rows import RowEncoder
from smile.representations.snapshot import Table

CPU = torch.device("cpu")
BOUNDARY = 2


@dataclass(frozen=True)
class Over:
    """What a domain is made over: its parent's name and what rows that gives."""

    name: str
    rows: EffectiveRows


@dataclass(frozen=True)
class Encoder:
    """A local encoder, as a file and in both forms."""

    backbone: Backbone
    path: Path
    stand_in: StandIn
    local: LocalEncoder

    @classmethod
    def make(cls, backbone: Backbone, path: Path, seed: int = 5) -> Encoder:
        """At `path`, with random weights of that seed."""
        torch.manual_seed(seed)
        form = EncoderForm(BOUNDARY, backbone.shape.hidden, first=24, middle=32, after=16)
        tensors = {
            name: tensor.numpy() for name, tensor in LocalEncoder(form, backbone).tensors().items()
        }
        facts = EncoderFacts(backbone.name, backbone.digest, form)
        path.write_bytes(artifact.encode(facts, tensors))
        file = artifact.read(path)
        kernels = kernels_for(CPU, torch.float32)
        stand_in = StandIn(file, backbone, kernels, CPU, torch.float32)
        return cls(backbone, path, stand_in, LocalEncoder.of(file, backbone))

    def table(self, folder: Path, texts: Sequence[str], dtype: RowDtype = RowDtype.FLOAT16) -> Path:
        """A snapshot of the texts' rows."""

        def ids(some: Sequence[str]) -> list[list[int]]:
            return [text.ids for text in self.backbone.tokenizer.encode(some, truncate=True)]

        shape, vocab = self.backbone.shape, len(self.backbone.embeddings.word)
        wish = TableWish(RowFormat(dtype, shape.hidden), 1 << 30, vocab)
        build.build(folder, texts, ids, self.stand_in, self.local.outside, wish)
        return folder

    def domain(
        self, folder: Path, name: str, texts: Sequence[str], over: Over, alpha: float
    ) -> Table:
        """A domain of these texts in a folder of domains: this encoder's rows."""

        def ids(some: Sequence[str]) -> list[list[int]]:
            return [text.ids for text in self.backbone.tokenizer.encode(some, truncate=True)]

        row_format = RowFormat(RowDtype.FLOAT16, self.backbone.shape.hidden)
        encoders = Encoders(self.stand_in, over.rows)
        counted = count_texts(texts, ids, self.local.outside)
        wish = TableWish(row_format, 1 << 30, 1, domain=name, parent=over.name)
        place = folder / name / places.TABLE
        build_delta(place, counted, encoders, wish, DeltaRules(alpha, 0.0))
        return Table.open(place)

    @torch.no_grad()
    def expected(
        self, module: VplmModule, text: str, rows_of: RowEncoder | None = None
    ) -> NDArray[Any]:
        """What torch answers over rows as they are stored in float16: one's own, or others."""
        (tokens,) = self.backbone.tokenizer.encode([text], truncate=True)
        packed = pack([tokens.ids])
        row_format = RowFormat(RowDtype.FLOAT16, self.backbone.shape.hidden)
        keys = ngram_keys(packed, self.local.outside).numpy()
        rows = row_format.unpack((rows_of or self.stand_in).packed(keys, row_format))
        states = self.local.merge(torch.from_numpy(rows), packed)
        layers = self.backbone.shape.layers
        states = self.backbone.forward_layers(
            states, packed, BOUNDARY, min(module.boundary, layers)
        )
        output = module.forward_from(states, packed)
        if module.spec.head.task is not Task.EMBEDDING:
            output = torch.softmax(output, dim=-1)
        values: NDArray[np.float32] = output.numpy()
        return values
