"""The local encoder for inference, with the machine's kernels. No autograd.

Weights are float32 or bfloat16, sums are always float32. A row depends on its trigram alone to the
bit, whatever it is computed beside: kernels take every row's sums in one order. So a row that was
looked up is the row that would have been computed, given the same precision and kernels.

The first layer is a sum of what each of three words adds by itself. That is computed once for each
word, unless it is too large, so a row costs the two other layers; see `words`.

Rows by layers over trigrams are torch's own, without that promise: they are there to compare with.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from smile.model.backbone import LayerNorm
from smile.model.kernels import Kernels
from smile.model.kernels.activation import Activation
from smile.model.kernels.dense import NormWeights
from smile.model.kernels.linear import Linear
from smile.model.kernels.workspace import Slot
from smile.model.packing import PackedTokens
from smile.model.skip import form as names
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm
from smile.model.skip.policy import RowKind
from smile.model.skip.words import FirstLayer, Weights, WordParts, first_layer


class RowMaker(Protocol):
    """Computes rows."""

    def rows(self, ngrams: Tensor, kernels: Kernels) -> Tensor:
        """[n, 3] int64 to rows [n, 3 H] in the encoder's precision, new; n is at least 1."""
        ...


@dataclass(frozen=True, slots=True)
class WordRows:
    """Rows by the network over words."""

    form: EncoderForm
    dtype: torch.dtype
    first: FirstLayer
    middle: Linear
    last: Linear

    def rows(self, ngrams: Tensor, kernels: Kernels) -> Tensor:
        """See `RowMaker`."""
        dense, room, count = kernels.dense, kernels.room, ngrams.shape[0]
        wide = room.take(Slot.WIDE, count, self.form.first, self.dtype)
        x = self.first.of(ngrams.contiguous(), kernels, wide)
        middle = room.take(Slot.QKV, count, self.form.middle, self.dtype)
        return dense.linear(dense.linear(x, self.middle, Activation.GELU, middle), self.last)


@dataclass(frozen=True, slots=True)
class LayerRows:
    """Rows by layers over trigrams, as they were learned, on the CPU."""

    encoder: LocalEncoder
    device: torch.device
    dtype: torch.dtype

    @torch.no_grad()
    def rows(self, ngrams: Tensor, kernels: Kernels) -> Tensor:
        """See `RowMaker`."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype is torch.bfloat16):
            return self.encoder.rows(ngrams.cpu()).to(self.device, self.dtype)


@dataclass(frozen=True, slots=True)
class ServingEncoder:
    """A local encoder's weights on a device, in a precision, with the kernels that compute there.

    Attributes:
        words: [vocab, H], the backbone's word embeddings in the precision.
        position: [positions, H], the backbone's.
        segment: [segments, H], the backbone's; all tokens are of the first.
        position_offset: The row of a text's first position.
        merge_norm: LayerNorm of the merged views, in float32.
        outside: The token id of neighbours outside a text.
        maker: Computes rows.
    """

    form: EncoderForm
    words: Tensor
    position: Tensor
    segment: Tensor
    position_offset: int
    outside: int
    merge_norm: NormWeights
    maker: RowMaker
    after_in: Linear
    after_out: Linear
    after_norm: NormWeights
    kernels: Kernels

    @classmethod
    def of(
        cls,
        encoder: LocalEncoder,
        kernels: Kernels,
        device: torch.device,
        dtype: torch.dtype,
        parts: WordParts = WordParts.WHOLE,
    ) -> ServingEncoder:
        """The encoder on a device, in a precision; `kernels` must be for both. It is for one thread
        at a time where `parts` are made as they are asked."""
        tensors = encoder.tensors()

        def packed(name: str) -> Linear:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            return kernels.dense.pack(weight.to(device, dtype), bias.to(device, dtype))

        def norm(name: str) -> NormWeights:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            epsilon = encoder.embeddings.norm.epsilon
            return LayerNorm(weight.to(device, copy=True), bias.to(device, copy=True), epsilon)

        tables = encoder.embeddings
        words = tables.word.to(device, dtype)
        maker: RowMaker
        if encoder.form.kind is RowKind.LAYERS:
            maker = LayerRows(encoder, device, dtype)
        else:
            weight, bias = tensors[f"{names.FIRST}.weight"], tensors[f"{names.FIRST}.bias"]
            first = first_layer(Weights(words, weight, bias), kernels, parts)
            maker = WordRows(encoder.form, dtype, first, packed(names.MIDDLE), packed(names.LAST))
        return cls(
            form=encoder.form,
            words=words,
            position=tables.position.to(device, dtype),
            segment=tables.segment.to(device, dtype),
            position_offset=tables.position_offset,
            outside=encoder.outside,
            merge_norm=norm(names.MERGE_NORM),
            maker=maker,
            after_in=packed(names.AFTER_IN),
            after_out=packed(names.AFTER_OUT),
            after_norm=norm(names.AFTER_NORM),
            kernels=kernels,
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, rows and states."""
        return self.words.dtype

    def using(self, kernels: Kernels) -> ServingEncoder:
        """The same with other kernels of its precision: those that `Kernels.together` yields."""
        return replace(self, kernels=kernels)

    def rows(self, ngrams: Tensor) -> Tensor:
        """[n, 3] int64 to rows [n, 3 H] in the encoder's precision, new; n is at least 1.

        Each is three views of H: what the trigram says of its left, centre and right token.
        """
        return self.maker.rows(ngrams, self.kernels)

    def after(self, x: Tensor, packed: PackedTokens, out: Tensor | None = None) -> Tensor:
        """Merged and normed views [tokens, H] to states at the boundary [tokens, H]."""
        dense, room, form = self.kernels.dense, self.kernels.room, self.form
        wide = room.take(Slot.WIDE, packed.tokens, form.inner, self.dtype)
        inner = dense.linear(x, self.after_in, Activation.GELU, wide)
        if form.context:
            self.kernels.local.mean_texts_(inner[:, form.after :], packed)
        y = room.take(Slot.OUTPUT, packed.tokens, form.hidden, self.dtype)
        y = dense.linear(inner, self.after_out, out=y)
        return dense.add_norm(y, x, self.after_norm, out)
