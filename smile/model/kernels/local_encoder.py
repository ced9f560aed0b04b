"""What a local encoder needs besides products: the sum of three words' parts, means over texts."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from smile.model.kernels.activation import NUMBERS, Activation
from smile.model.kernels.dense import ACTIVATIONS
from smile.model.kernels.tape import Calls
from smile.model.packing import PackedTokens

VIEWS = 3  # a word's parts: as the left, the centre and the right word of a trigram


class LocalKernels(Protocol):
    """Tensors of numbers are float32 or bfloat16, sums float32."""

    def sum_words(
        self,
        ngrams: Tensor,
        parts: Tensor,
        bias: Tensor,
        activation: Activation,
        out: Tensor | None = None,
    ) -> Tensor:
        """activation(left + centre + right + bias): [n, 3] int64 to [n, W].

        Args:
            parts: [vocab, 3 W], of each word what it adds as left, as centre and as right word.
            bias: [W] float32.
            out: A place for the result: what is returned may be it or may be new.

        Raises:
            IndexError: a word is outside the vocabulary.
        """
        ...

    def mean_texts_(self, x: Tensor, packed: PackedTokens) -> Tensor:
        """`x` [tokens, W], changed in place: every token's row becomes the mean of its text's."""
        ...


class TorchLocal:
    """The kernels in torch's own operations, on any device. Stateless: threads may share it."""

    def sum_words(
        self,
        ngrams: Tensor,
        parts: Tensor,
        bias: Tensor,
        activation: Activation,
        out: Tensor | None = None,
    ) -> Tensor:
        table = parts.view(parts.shape[0], VIEWS, -1)
        left, centre, right = (table[ngrams[:, v], v].float() for v in range(VIEWS))
        return ACTIVATIONS[activation]((left + centre) + (right + bias)).to(parts.dtype)

    def mean_texts_(self, x: Tensor, packed: PackedTokens) -> Tensor:
        lengths = packed.offsets[1:] - packed.offsets[:-1]
        sums = torch.zeros(lengths.shape[0], x.shape[1], device=x.device)
        means = sums.index_add(0, packed.texts, x.float()) / lengths[:, None]
        return x.copy_(means.index_select(0, packed.texts))


class NativeLocal:
    """The kernels in C++ (local_encoder.cpp), for inference on CPUs. As safe with threads as
    `calls`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._function = calls.entries.function

    def sum_words(
        self,
        ngrams: Tensor,
        parts: Tensor,
        bias: Tensor,
        activation: Activation,
        out: Tensor | None = None,
    ) -> Tensor:
        count, width = ngrams.shape[0], parts.shape[1] // VIEWS
        assert ngrams.dtype is torch.int64 and ngrams.shape == (count, VIEWS)
        assert ngrams.is_contiguous() and parts.is_contiguous() and bias.is_contiguous()
        assert bias.dtype is torch.float32 and bias.shape == (width,), bias.shape
        if count:
            least, most = (int(bound) for bound in torch.aminmax(ngrams))
            if least < 0 or most >= parts.shape[0]:
                raise IndexError(f"words {least} to {most} of {parts.shape[0]}")
        out = parts.new_empty((count, width)) if out is None else out
        address, stride, rows, columns, dtype = self._calls.matrix(out)
        assert (rows, columns) == (count, width) and dtype is parts.dtype, f"{out.shape}"
        words = (
            ngrams.data_ptr(),
            parts.data_ptr(),
            bias.data_ptr(),
            NUMBERS[activation],
            address,
            stride,
            rows,
            columns,
            self._calls.threads,
        )
        self._calls.add(self._function("sum_words", dtype), words, ngrams, parts, bias)
        return out

    def mean_texts_(self, x: Tensor, packed: PackedTokens) -> Tensor:
        address, stride, tokens, width, dtype = self._calls.matrix(x)
        assert tokens == packed.tokens, f"{tokens} rows of {packed.tokens} tokens"
        texts = len(packed.lengths)
        words = (address, stride, packed.offsets.data_ptr(), texts, width, self._calls.threads)
        self._calls.add(self._function("mean_texts", dtype), words, packed)
        return x
