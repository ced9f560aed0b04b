"""What makes a row of its three tokens: a network over words, or transformer layers over trigrams.

A neighbour that is left out, `ANY`, adds nothing: the words' network has no part of it, the layers
do not attend to it and have nothing to say of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from smile.model.backbone import ACTIVATIONS, Backbone, Dense, Embeddings, Layer
from smile.model.kernels.dense import NormWeights
from smile.model.skip import form as names
from smile.model.skip.form import VIEWS, EncoderForm, layer_part
from smile.model.skip.ngrams import ANY
from smile.model.skip.policy import RowKind
from smile.model.specs import Projection

ATTENTION_INPUTS = (Projection.QUERY, Projection.KEY, Projection.VALUE)


class RowNetwork(Protocol):
    """Makes rows; a row depends on its n-gram alone."""

    def rows(self, ngrams: Tensor) -> Tensor:
        """[n, 3] int64 to [n, 3 H]: what each says of its left, centre and right token."""
        ...

    def parts(self) -> Mapping[str, nn.Module]:
        """What has a weight and a bias, by the form's names."""
        ...

    def start_from(self, backbone: Backbone) -> NormWeights:
        """Begins where the backbone does, as far as it can; the norm to begin merging with."""
        ...


def row_network(form: EncoderForm, backbone: Backbone) -> WordNetwork | TrigramLayers:
    """The form's, with random numbers."""
    if form.kind is RowKind.WORDS:
        return WordNetwork(form, backbone.embeddings)
    return TrigramLayers(form, backbone)


class WordNetwork(nn.Module):
    """Three dense layers over the three words' embeddings, which are frozen."""

    def __init__(self, form: EncoderForm, embeddings: Embeddings) -> None:
        super().__init__()
        self._embeddings = embeddings
        self.first = nn.Linear(VIEWS * form.hidden, form.first)
        self.middle = nn.Linear(form.first, form.middle)
        self.last = nn.Linear(form.middle, form.row)

    def rows(self, ngrams: Tensor) -> Tensor:
        """See `RowNetwork`."""
        tokens, places = torch.unique(ngrams, return_inverse=True)
        absent = (tokens == ANY)[:, None]
        words = functional.embedding(tokens.masked_fill(absent[:, 0], 0), self._embeddings.word)
        words = words.masked_fill(absent, 0.0)  # [distinct, H]
        parts = [
            functional.linear(words, weight).index_select(0, places[:, view])
            for view, weight in enumerate(self.first.weight.chunk(VIEWS, dim=1))
        ]
        total = parts[0] + parts[1] + parts[2] + self.first.bias.to(parts[0].dtype)
        rows: Tensor = self.last(functional.gelu(self.middle(functional.gelu(total))))
        return rows

    def parts(self) -> Mapping[str, nn.Module]:
        """See `RowNetwork`."""
        return {names.FIRST: self.first, names.MIDDLE: self.middle, names.LAST: self.last}

    def start_from(self, backbone: Backbone) -> NormWeights:
        """See `RowNetwork`: its numbers stay random."""
        return backbone.embeddings.norm


class TrigramLayers(nn.Module):
    """SkipBERT's local encoder: each n-gram is a text of three tokens, at positions 0 to 2, that
    goes through embeddings and layers of its own; each view is weighed by a learned gate
    (Wang et al., ACL 2022, section 3.2)."""

    def __init__(self, form: EncoderForm, backbone: Backbone) -> None:
        super().__init__()
        self._embeddings = backbone.embeddings
        self.blocks = nn.ModuleList(
            TrigramLayer(form, backbone.layers[0]) for _ in range(form.layers)
        )
        self.gate = nn.Linear(form.hidden, 1)

    @property
    def layers(self) -> Sequence[TrigramLayer]:
        """From the lowest up."""
        return [block for block in self.blocks if isinstance(block, TrigramLayer)]

    def rows(self, ngrams: Tensor) -> Tensor:
        """See `RowNetwork`."""
        tables = self._embeddings
        absent = ngrams == ANY
        words = functional.embedding(ngrams.masked_fill(absent, 0), tables.word)
        places = tables.position[tables.position_offset :][:VIEWS]
        norm = tables.norm
        x = functional.layer_norm(
            words + places + tables.segment[0],
            norm.weight.shape,
            norm.weight,
            norm.bias,
            norm.epsilon,
        )  # [n, 3, H]
        mask = torch.zeros_like(ngrams, dtype=x.dtype).masked_fill(absent, float("-inf"))
        mask = mask[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        views: Tensor = x * torch.sigmoid(self.gate(x))
        return views.masked_fill(absent[:, :, None], 0.0).flatten(1)

    def parts(self) -> Mapping[str, nn.Module]:
        """See `RowNetwork`."""
        found: dict[str, nn.Module] = {names.GATE: self.gate}
        for index, layer in enumerate(self.layers):
            found |= {layer_part(index, name): part for name, part in layer.parts().items()}
        return found

    @torch.no_grad()
    def start_from(self, backbone: Backbone) -> NormWeights:
        """See `RowNetwork`: layers begin as the backbone's lowest, gates half open."""
        below = backbone.layers[: len(self.blocks)]
        for layer, theirs in zip(self.layers, below, strict=True):
            layer.copy_from(theirs)
        self.gate.weight.zero_()
        self.gate.bias.zero_()
        return below[-1].output_norm


class TrigramLayer(nn.Module):
    """One post-norm transformer layer over three tokens, of the backbone's heads and activation."""

    def __init__(self, form: EncoderForm, like: Layer) -> None:
        super().__init__()
        hidden, epsilon = form.hidden, like.output_norm.epsilon
        self._heads, self._activation = like.heads, ACTIVATIONS[like.activation]
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, epsilon)
        self.intermediate = nn.Linear(hidden, form.wide)
        self.output = nn.Linear(form.wide, hidden)
        self.output_norm = nn.LayerNorm(hidden, epsilon)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """[n, 3, H] to the same; `mask` [n, 1, 1, 3] is added to scores."""
        count, length, width = x.shape
        shape = (count, length, self._heads, width // self._heads)
        query, key, value = (one.view(shape).transpose(1, 2) for one in self.qkv(x).chunk(3, 2))
        scores = (query @ key.transpose(2, 3)) * shape[3] ** -0.5
        mixed = (scores + mask.to(scores.dtype)).softmax(-1).to(value.dtype) @ value
        mixed = mixed.transpose(1, 2).reshape(count, length, width)
        x = self.attention_norm(x + self.attention_output(mixed))
        y: Tensor = self.output_norm(x + self.output(self._activation(self.intermediate(x))))
        return y

    def parts(self) -> Mapping[str, nn.Module]:
        """By the form's names of a layer's parts."""
        return {
            names.QKV: self.qkv,
            names.ATTENTION_OUTPUT: self.attention_output,
            names.ATTENTION_NORM: self.attention_norm,
            names.INTERMEDIATE: self.intermediate,
            names.OUTPUT: self.output,
            names.OUTPUT_NORM: self.output_norm,
        }

    @torch.no_grad()
    def copy_from(self, layer: Layer) -> None:
        """Becomes a layer of the backbone."""
        inputs = [layer.projections[name] for name in ATTENTION_INPUTS]
        weight = torch.cat([one.weight for one in inputs])
        bias = torch.cat([one.bias for one in inputs])
        for ours, theirs in (
            (self.qkv, Dense(weight, bias)),
            (self.attention_output, layer.projections[Projection.ATTENTION_OUTPUT]),
            (self.attention_norm, layer.attention_norm),
            (self.intermediate, layer.projections[Projection.INTERMEDIATE]),
            (self.output, layer.projections[Projection.OUTPUT]),
            (self.output_norm, layer.output_norm),
        ):
            ours.weight.copy_(theirs.weight)
            ours.bias.copy_(theirs.bias)
