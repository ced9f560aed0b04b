"""The local encoder for inference, with the machine's kernels. No autograd.

Weights are float32 or bfloat16, sums are always float32. A row depends on its trigram alone to the
bit, whatever it is computed beside: kernels take every row's sums in one order. So a row that was
looked up is the row that would have been computed, given the same precision and kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from smile.model.backbone import LayerNorm
from smile.model.kernels import Kernels
from smile.model.kernels.activation import Activation
from smile.model.kernels.dense import NormWeights
from smile.model.kernels.linear import Linear
from smile.model.skip import form as names
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import VIEWS, EncoderForm


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
    """

    form: EncoderForm
    words: Tensor
    position: Tensor
    segment: Tensor
    position_offset: int
    outside: int
    merge_norm: NormWeights
    first: Linear
    middle: Linear
    last: Linear
    after_in: Linear
    after_out: Linear
    after_norm: NormWeights
    kernels: Kernels

    @classmethod
    def of(
        cls, encoder: LocalEncoder, kernels: Kernels, device: torch.device, dtype: torch.dtype
    ) -> ServingEncoder:
        """The encoder on a device, in a precision; `kernels` must be for both."""
        tensors = encoder.tensors()

        def packed(name: str) -> Linear:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            return kernels.dense.pack(weight.to(device, dtype), bias.to(device, dtype))

        def norm(name: str) -> NormWeights:
            weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            epsilon = encoder.embeddings.norm.epsilon
            return LayerNorm(weight.to(device, copy=True), bias.to(device, copy=True), epsilon)

        tables = encoder.embeddings
        return cls(
            form=encoder.form,
            words=tables.word.to(device, dtype),
            position=tables.position.to(device, dtype),
            segment=tables.segment.to(device, dtype),
            position_offset=tables.position_offset,
            outside=encoder.outside,
            merge_norm=norm(names.MERGE_NORM),
            first=packed(names.FIRST),
            middle=packed(names.MIDDLE),
            last=packed(names.LAST),
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
        dense = self.kernels.dense
        tokens = ngrams.reshape(-1).contiguous()
        words = dense.select(self.words, tokens)  # [3 n, H], which lie as [n, 3 H]
        x = words.view(ngrams.shape[0], VIEWS * self.form.hidden)
        x = dense.linear(x, self.first, Activation.GELU)
        x = dense.linear(x, self.middle, Activation.GELU)
        return dense.linear(x, self.last)

    def after(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Merged and normed views [tokens, H] to states at the boundary [tokens, H]."""
        dense = self.kernels.dense
        y = dense.linear(x, self.after_in, Activation.GELU)
        y = dense.linear(y, self.after_out)
        return dense.add_norm(y, x, self.after_norm, out)
