"""The ordinary backbone's states at the boundary and above, computed once and kept on disk.

They are computed by the kernels that serve, in bfloat16: against float32 their error is some
twenty-thousandth of the states' variance, far below what a student can reach. Kept in float16.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile.errors import FailedPrecondition
from smile.model.backbone import Backbone
from smile.model.kernels import kernels_for
from smile.model.packing import PackedTokens, pack
from smile.model.serving import ServingBackbone
from smile.model.skip.distill.corpus import Pieces

BATCH_TOKENS = 2_048
DISK_SHARE_MAX = 0.5  # of what is free
STATES_FILE = "states.f16"
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Teacher:
    """A backbone with its kernels.

    Attributes:
        boundary: First layer whose input is a target.
    """

    serving: ServingBackbone
    boundary: int

    @classmethod
    def of(cls, backbone: Backbone, boundary: int) -> Teacher:
        """A teacher in bfloat16 on the CPU."""
        kernels = kernels_for(CPU, torch.bfloat16)
        return cls(ServingBackbone.of(backbone, kernels, CPU, torch.bfloat16), boundary)

    @property
    def outputs(self) -> int:
        """States of a token: at the boundary, and above each layer from there."""
        return len(self.serving.layers) - self.boundary + 1

    @property
    def hidden(self) -> int:
        """The backbone's hidden width."""
        return int(self.serving.embeddings.word.shape[1])

    @torch.no_grad()
    def states(self, packed: PackedTokens) -> Tensor:
        """[tokens, outputs, H] bfloat16."""
        everything = torch.arange(packed.tokens)
        with self.serving.together() as serving:
            dense = serving.kernels.dense
            x = serving.embed(packed)
            x = serving.forward_layers(x, packed, 0, [None] * self.boundary)
            found = [dense.select(x, everything)]  # the pass overwrites x
            for layer in range(self.boundary, len(serving.layers)):
                x = serving.forward_layers(x, packed, layer, [None])
                found.append(dense.select(x, everything))
        return torch.stack(found, dim=1)

    @torch.no_grad()
    def above(self, states: Tensor, packed: PackedTokens) -> Tensor:
        """What the layers make of boundary states [tokens, H]: [tokens, outputs, H] bfloat16."""
        everything = torch.arange(packed.tokens)
        first = states.to(torch.bfloat16)
        found = [first]
        with self.serving.together() as serving:
            x = first
            for layer in range(self.boundary, len(serving.layers)):
                x = serving.forward_layers(x, packed, layer, [None])
                found.append(serving.kernels.dense.select(x, everything))
        return torch.stack(found, dim=1)


class Targets:
    """The teacher's states of every text, from disk where they fit, else computed when asked for.

    Args:
        folder: Where they may be kept: at most half of what is free there.
    """

    def __init__(self, teacher: Teacher, pieces: Pieces, folder: Path) -> None:
        self._teacher = teacher
        self._pieces = pieces
        self._path = folder / STATES_FILE
        lengths = np.fromiter(map(len, pieces.ids), np.int64, len(pieces.ids))
        self._ends = lengths.cumsum()
        self._kept: NDArray[np.float16] | None = None

    @property
    def bytes(self) -> int:
        """What keeping them all takes."""
        return int(np.prod(self._shape)) * 2

    @property
    def _shape(self) -> tuple[int, int, int]:
        return self._pieces.tokens, self._teacher.outputs, self._teacher.hidden

    def prepare(self) -> Iterator[int]:
        """Computes them all, where they fit and are not there; yields how many tokens are done.

        Raises:
            FailedPrecondition: the disk is full all the same.
        """
        if not self._path.is_file():
            if self.bytes > DISK_SHARE_MAX * shutil.disk_usage(self._path.parent).free:
                return
            yield from self._write()
        kept = np.memmap(self._path, np.float16, "r")
        if kept.size * 2 == self.bytes:
            self._kept = kept.reshape(self._shape)

    def of(self, texts: Sequence[int], packed: PackedTokens) -> Tensor:
        """Of these texts, which are packed end to end: [tokens, outputs, H] float32."""
        if self._kept is None:
            return self._teacher.states(packed).half().float()
        parts = [
            self._kept[self._ends[index] - len(self._pieces.ids[index]) : self._ends[index]]
            for index in texts
        ]
        return torch.from_numpy(np.concatenate(parts)).float()

    def _write(self) -> Iterator[int]:
        part = self._path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.bytes)  # else a full disk is a SIGBUS
            kept = np.memmap(part, np.float16, "r+", shape=self._shape)
            done = 0
            for texts in in_batches(self._pieces):
                packed = pack([self._pieces.ids[index] for index in texts])
                states = self._teacher.states(packed).half().split(packed.lengths)
                for index, one in zip(texts, states, strict=True):
                    end = self._ends[index]
                    kept[end - one.shape[0] : end] = one.numpy()
                done += packed.tokens
                yield done
            kept.flush()
        except OSError as error:
            part.unlink(missing_ok=True)
            raise FailedPrecondition(
                f"{self.bytes} bytes of the teacher's states do not fit {part.parent}: "
                f"{error.strerror}",
                reason="DISK_FULL",
            ) from error
        part.replace(self._path)


def in_batches(pieces: Pieces, tokens: int = BATCH_TOKENS) -> Iterator[list[int]]:
    """All texts by length, in batches of about so many tokens."""
    taken: list[int] = []
    filled = 0
    for index in sorted(range(len(pieces.ids)), key=lambda one: len(pieces.ids[one])):
        taken.append(index)
        filled += len(pieces.ids[index])
        if filled >= tokens:
            yield taken
            taken, filled = [], 0
    if taken:
        yield taken
