"""Rows for tables, computed as the processor computes those that no table has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smile.model.backbone import Backbone
from smile.model.kernels import KernelChoice, Kernels, kernels_for
from smile.model.ngram_rows import VIEWS, RowDtype, RowFormat
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.ngrams import ANY, ngrams_from
from smile.model.skip.policy import MissPolicy
from smile.model.skip.serving import ServingEncoder
from smile.model.skip.words import WordParts
from smile.representations.manifest import Origin

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class EncoderRows:
    """A local encoder that fills tables; implements `smile.representations.rows.RowEncoder`.

    Attributes:
        encoder: Computes rows of trigrams.
        local: Computes those of shorter n-grams, which are never computed while serving.
        origin: Whose rows they are.
        policy: What serves n-grams that a table of them lacks.
        vocab: Token ids are below it.
    """

    encoder: ServingEncoder
    local: LocalEncoder
    origin: Origin
    policy: MissPolicy
    vocab: int

    @classmethod
    def load(
        cls,
        path: Path,
        backbone: Backbone,
        dtype: torch.dtype = torch.float32,
        choice: KernelChoice = KernelChoice.AUTO,
    ) -> EncoderRows:
        """Reads an encoder's file; rows are computed in `dtype` on the CPU.

        Raises:
            FailedPrecondition: there is none, or it is for another backbone.
            DataCorrupted: it is no local encoder's file.
        """
        return cls.of(artifact.read(path), backbone, dtype, choice)

    @classmethod
    def of(
        cls,
        file: EncoderFile,
        backbone: Backbone,
        dtype: torch.dtype = torch.float32,
        choice: KernelChoice = KernelChoice.AUTO,
        parts: WordParts = WordParts.WHOLE,
    ) -> EncoderRows:
        """The same of a file that was read; for one thread at a time where `parts` are made as they
        are asked."""
        local = LocalEncoder.of(file, backbone)
        kernels = kernels_for(CPU, dtype, choice)
        serving = ServingEncoder.of(local, kernels, CPU, dtype, parts)
        return cls._of(file, backbone, local, serving)

    @classmethod
    def on(
        cls,
        file: EncoderFile,
        backbone: Backbone,
        kernels: Kernels,
        device: torch.device,
        dtype: torch.dtype,
    ) -> EncoderRows:
        """The same on a device; `kernels` must be for it and for `dtype`.

        Raises:
            FailedPrecondition: the encoder is for another backbone.
        """
        local = LocalEncoder.of(file, backbone)
        serving = ServingEncoder.of(local, kernels, device, dtype)
        return cls._of(file, backbone, local, serving)

    @classmethod
    def _of(
        cls, file: EncoderFile, backbone: Backbone, local: LocalEncoder, serving: ServingEncoder
    ) -> EncoderRows:
        form, device, kernels = file.facts.form, serving.words.device, serving.kernels
        origin = Origin(
            backbone.name,
            backbone.digest,
            file.digest,
            form.boundary,
            form.hidden,
            precision=str(serving.dtype).removeprefix("torch."),
            kernels=f"{device.type}:{kernels.target or 'torch'}",
        )
        return cls(serving, local, origin, file.facts.policy, backbone.info.vocab)

    @property
    def outside(self) -> int:
        """The token id of neighbours outside a text."""
        return self.encoder.outside

    @property
    def format(self) -> RowFormat:
        """Of rows without a table."""
        return RowFormat(RowDtype.FLOAT16, self.origin.width)

    @torch.inference_mode()
    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        """Rows as tables store them: [n] to [n, row_bytes]; n is at least 1."""
        ngrams = ngrams_from(torch.tensor(keys))
        device, dtype = self.encoder.words.device, self.encoder.dtype
        shorter = (ngrams == ANY).any(dim=1)
        if not bool(shorter.any()):
            rows = self.encoder.rows(ngrams.to(device))
        else:
            rows = torch.empty(len(ngrams), row_format.width * VIEWS, dtype=dtype, device=device)
            if not bool(shorter.all()):
                rows[~shorter] = self.encoder.rows(ngrams[~shorter].to(device))
            rows[shorter] = self.local.rows(ngrams[shorter]).to(device, dtype)
        made: NDArray[np.uint8] = self.encoder.kernels.merge.pack_rows(rows, row_format).numpy()
        return made
