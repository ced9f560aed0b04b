"""Rows for tables, computed as the processor computes those that no table has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from smile.model.backbone import Backbone
from smile.model.kernels import KernelChoice, kernels_for
from smile.model.ngram_rows import RowFormat
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.ngrams import ngrams_from
from smile.model.skip.serving import ServingEncoder
from smile.representations.manifest import Origin

CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class EncoderRows:
    """A local encoder that fills tables; implements `smile.representations.rows.RowEncoder`.

    Attributes:
        origin: Whose rows they are.
        vocab: Token ids are below it.
    """

    encoder: ServingEncoder
    origin: Origin
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
    ) -> EncoderRows:
        """The same of a file that was read."""
        file.check(backbone.digest)
        local = LocalEncoder.of(file, backbone)
        serving = ServingEncoder.of(local, kernels_for(CPU, dtype, choice), CPU, dtype)
        form = file.facts.form
        origin = Origin(backbone.name, backbone.digest, file.digest, form.boundary, form.hidden)
        return cls(serving, origin, backbone.info.vocab)

    @property
    def outside(self) -> int:
        """The token id of neighbours outside a text."""
        return self.encoder.outside

    @torch.inference_mode()
    def packed(self, keys: NDArray[np.int64], row_format: RowFormat) -> NDArray[np.uint8]:
        """Rows as tables store them: [n] to [n, row_bytes]; n is at least 1."""
        rows = self.encoder.rows(ngrams_from(torch.from_numpy(keys)))
        made: NDArray[np.uint8] = self.encoder.kernels.merge.pack_rows(rows, row_format).numpy()
        return made
