"""The local encoder in float32, as it is trained: the definition that serving is tested against.

    first   s = gelu(A e[left] + B e[centre] + C e[right] + a)     e: word embeddings, frozen
    middle  m = gelu(M s + b)
    last    row = L m + c                                          three views of H numbers

or, to compare with, transformer layers over the three tokens (`networks.TrigramLayers`).

    merge   x[i] = LayerNorm(centre(i) + left(i + 1) + right(i - 1) + position[i] + segment)
    after   g[i] = gelu(I x[i] + d), whose last `context` numbers become their mean over the text
            state[i] = LayerNorm(x[i] + O g[i] + f)

where centre(i) is what the trigram around token i says of token i, left(i + 1) what the trigram
around the next token says of its left one, and so on; neighbours outside a text say nothing. Merge
as in SkipBERT (Wang et al., ACL 2022, section 3.2).

A row depends on its three tokens alone, and within a text nothing depends on another text.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from smile.model.backbone import Backbone, Embeddings
from smile.model.packing import PackedTokens
from smile.model.skip import form as names
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.form import VIEWS, EncoderForm, outside_of
from smile.model.skip.networks import row_network
from smile.model.skip.ngrams import ngram_keys, ngrams_from


class LocalEncoder(nn.Module):
    """Rows of n-grams, and states at the boundary.

    Attributes:
        network: What makes rows.

    Args:
        form: Its dimensions. Its numbers are drawn from torch's generator.
        backbone: Its embeddings are used as they are, and never trained.

    Raises:
        FailedPrecondition: it does not fit the backbone.
    """

    def __init__(self, form: EncoderForm, backbone: Backbone) -> None:
        super().__init__()
        form.check_backbone(backbone.info)
        self.form = form
        self._embeddings = backbone.embeddings
        self.outside = outside_of(backbone.embeddings.position_offset)
        self.network = row_network(form, backbone)
        epsilon = backbone.embeddings.norm.epsilon
        self.merge_norm = nn.LayerNorm(form.hidden, epsilon)
        self.after_in = nn.Linear(form.hidden, form.inner)
        self.after_out = nn.Linear(form.inner, form.hidden)
        self.after_norm = nn.LayerNorm(form.hidden, epsilon)

    @classmethod
    def of(cls, file: EncoderFile, backbone: Backbone) -> LocalEncoder:
        """The encoder of a file.

        Raises:
            FailedPrecondition: it was made for another backbone.
        """
        file.check(backbone.digest)
        encoder = cls(file.facts.form, backbone)
        encoder.load({name: torch.from_numpy(array) for name, array in file.tensors.items()})
        return encoder

    @torch.no_grad()
    def start_from(self, backbone: Backbone) -> None:
        """Begins where the backbone does: merged views are normed as its embeddings, or its layers,
        are."""
        norm = self.network.start_from(backbone)
        self.merge_norm.weight.copy_(norm.weight)
        self.merge_norm.bias.copy_(norm.bias)

    @property
    def embeddings(self) -> Embeddings:
        """The backbone's own."""
        return self._embeddings

    def rows(self, ngrams: Tensor) -> Tensor:
        """[n, 3] int64 to [n, 3 H]: of each n-gram what it says of its left, centre and right.

        Neighbours that are left out are `ANY`.
        """
        rows: Tensor = self.network.rows(ngrams)
        return rows

    def merge(self, rows: Tensor, packed: PackedTokens) -> Tensor:
        """Every token's own row [tokens, 3 H] to states at the boundary [tokens, H]."""
        return self.after(self.merged(rows, packed), packed)

    def merged(self, rows: Tensor, packed: PackedTokens) -> Tensor:
        """Every token's own row [tokens, 3 H] to [tokens, H]; see x in the module's docstring."""
        tables = self._embeddings
        left, centre, right = rows.float().chunk(VIEWS, dim=1)
        starts, ends = packed.offsets[:-1], packed.offsets[1:] - 1
        from_next = torch.cat([left[1:], left.new_zeros(1, self.form.hidden)])
        from_next = from_next.index_fill(0, ends, 0.0)
        from_last = torch.cat([right.new_zeros(1, self.form.hidden), right[:-1]])
        from_last = from_last.index_fill(0, starts, 0.0)
        place = functional.embedding(packed.positions + tables.position_offset, tables.position)
        normed: Tensor = self.merge_norm(centre + from_next + from_last + place + tables.segment[0])
        return normed

    def after(self, x: Tensor, packed: PackedTokens) -> Tensor:
        """Merged and normed views [tokens, H] to states at the boundary [tokens, H]."""
        inner = functional.gelu(self.after_in(x))
        own, shared = inner.split([self.form.after, self.form.context], dim=1)
        lengths = (packed.offsets[1:] - packed.offsets[:-1]).float()
        sums = x.new_zeros(len(packed.lengths), self.form.context)
        means = sums.index_add(0, packed.texts, shared.float()) / lengths[:, None]
        inner = torch.cat([own, means.to(inner.dtype).index_select(0, packed.texts)], dim=1)
        states: Tensor = self.after_norm(x + self.after_out(inner))
        return states

    def forward(self, packed: PackedTokens, keys: Tensor | None = None) -> Tensor:
        """States at the boundary: [tokens, H].

        Args:
            keys: [tokens] int64, the n-gram that serves each token; None: its trigram.
        """
        keys = ngram_keys(packed, self.outside) if keys is None else keys
        different, places = torch.unique(keys, return_inverse=True)
        return self.merge(self.rows(ngrams_from(different)).index_select(0, places), packed)

    def tensors(self) -> dict[str, Tensor]:
        """By the form's names, detached, sharing memory."""
        parts = {
            **self.network.parts(),
            names.MERGE_NORM: self.merge_norm,
            names.AFTER_IN: self.after_in,
            names.AFTER_OUT: self.after_out,
            names.AFTER_NORM: self.after_norm,
        }
        return {
            f"{name}.{kind}": getattr(part, kind).detach()
            for name, part in parts.items()
            for kind in ("weight", "bias")
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copies tensors of the form's names and shapes into it."""
        own = self.tensors()
        assert own.keys() == tensors.keys(), own.keys() ^ tensors.keys()
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
