"""The first layer behind a row: a sum of what each of its three words adds by itself.

What a word adds, its parts, is a product with its embedding. All are of the same bits whenever they
are made, with kernels that take each row's sums in one order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from smile.model.kernels import Kernels
from smile.model.kernels.activation import Activation
from smile.model.kernels.linear import Linear
from smile.model.skip.form import VIEWS

PARTS_MAX = 128 * 1024 * 1024  # numbers in the words' parts; beyond, they are computed for each row
PARTS_BATCH = 2_048  # words


class WordParts(enum.StrEnum):
    """When the words' parts are made.

    WHOLE makes the whole vocabulary's at once, for what asks as long as it runs. ASKED makes a
    word's when it is first asked, for what ends, or asks few words.
    """

    WHOLE = "whole"
    ASKED = "asked"


class FirstLayer(Protocol):
    """gelu(A e[left] + B e[centre] + C e[right] + a), e being the backbone's word embeddings."""

    def of(self, ngrams: Tensor, kernels: Kernels, out: Tensor | None) -> Tensor:
        """[n, 3] int64, contiguous, to [n, W]; n is at least 1.

        Args:
            out: A place for the result: what is returned may be it or may be new.

        Raises:
            IndexError: a word is outside the vocabulary.
        """
        ...


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the first layer, with the words it is a product with.

    Attributes:
        words: [vocab, H] in the precision.
        weight: [W, 3 H] float32: A, B and C side by side.
        bias: [W] float32.
    """

    words: Tensor
    weight: Tensor
    bias: Tensor


def first_layer(given: Weights, kernels: Kernels, parts: WordParts) -> FirstLayer:
    """By words' parts, or without where they were too large. Decided by sizes alone, so by all
    processes alike."""
    words, width = given.words, VIEWS * given.weight.shape[0]
    weight = given.weight.to(words.device, words.dtype)
    bias = given.bias.to(words.device, copy=True)
    if words.shape[0] * width > PARTS_MAX:
        return ByRow(words, kernels.dense.pack(weight, bias.to(words.dtype)))
    stacked = torch.cat(weight.chunk(VIEWS, dim=1))  # [3 W, H]
    product = kernels.dense.pack(stacked, stacked.new_zeros(width))
    if parts is WordParts.ASKED:
        return AskedParts(words, product, bias, kernels)
    made = words.new_empty(words.shape[0], width)
    _make(words, product, made, kernels)
    return WholeParts(made, bias)


@dataclass(frozen=True, slots=True)
class ByRow:
    """A product with the three words side by side.

    Attributes:
        words: [vocab, H].
    """

    words: Tensor
    product: Linear

    def of(self, ngrams: Tensor, kernels: Kernels, out: Tensor | None) -> Tensor:
        """See `FirstLayer`."""
        words = kernels.dense.select(self.words, ngrams.view(-1))  # [3 n, H], which lie as [n, 3 H]
        side_by_side = words.view(ngrams.shape[0], -1)
        return kernels.dense.linear(side_by_side, self.product, Activation.GELU, out)


@dataclass(frozen=True, slots=True)
class WholeParts:
    """A sum of parts. Never changes, so threads may share it.

    Attributes:
        parts: [vocab, 3 W], what each word adds as left, centre and right word.
        bias: [W] float32.
    """

    parts: Tensor
    bias: Tensor

    def of(self, ngrams: Tensor, kernels: Kernels, out: Tensor | None) -> Tensor:
        """See `FirstLayer`."""
        return kernels.local.sum_words(ngrams, self.parts, self.bias, Activation.GELU, out)


class AskedParts:
    """The same sum, of parts that are made as their words are asked. For one thread at a time.

    There is a place for each word of the vocabulary, filled in the order in which they are asked:
    the system gives a place its memory when it is first written.

    Args:
        words: [vocab, H].
        product: Makes a word's parts.
        bias: [W] float32.
        kernels: Make them at once, whatever waits for a pass to end.
    """

    def __init__(self, words: Tensor, product: Linear, bias: Tensor, kernels: Kernels) -> None:
        vocab = words.shape[0]
        self._words, self._product, self._bias, self._kernels = words, product, bias, kernels
        self._parts = words.new_empty(vocab, product.outputs)
        self._places = torch.full((vocab,), -1, dtype=torch.int64, device=words.device)
        self.made = 0

    def of(self, ngrams: Tensor, kernels: Kernels, out: Tensor | None) -> Tensor:
        """See `FirstLayer`."""
        asked = ngrams.view(-1)
        places = self._places.index_select(0, asked)
        new = asked[places < 0].unique()
        if len(new):
            self._add(new)
            places = self._places.index_select(0, asked)
        places = places.view(ngrams.shape)
        return kernels.local.sum_words(places, self._parts, self._bias, Activation.GELU, out)

    def _add(self, new: Tensor) -> None:
        end = self.made + len(new)
        rows = self._words.index_select(0, new)
        _make(rows, self._product, self._parts[self.made : end], self._kernels)
        self._places[new] = torch.arange(self.made, end, device=new.device)
        self.made = end


def _make(words: Tensor, product: Linear, parts: Tensor, kernels: Kernels) -> None:
    """Of words [n, H] their parts, into [n, 3 W]; n is at least 1."""
    for some, out in zip(words.split(PARTS_BATCH), parts.split(PARTS_BATCH), strict=True):
        made = kernels.dense.linear(some, product, out=out)
        if made is not out:
            out.copy_(made)
