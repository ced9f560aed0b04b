"""The frozen transformer: a BERT or RoBERTa encoder over packed tokens, in float32.

Weights are memory-mapped, so processes on one machine share their pages. Gradients flow through the
activations (PET modules train through the frozen layers), never into the weights.

Where PET modules act is decided here, once, by `LayerOps`; the trainable reference and the batched
engine are two implementations of it. `smile.model.serving` is the same transformer for inference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from smile.model import checkpoint
from smile.model.checkpoint import Activation, BackboneInfo, EncoderConfig
from smile.model.kernels.dense import (
    EmbeddingTables,
    NormWeights,
    TorchDense,
    attend,
    attend_firsts,
)
from smile.model.layout import Norm
from smile.model.packing import PackedTokens
from smile.model.specs import BackboneShape, Projection
from smile.model.tokenizer import TextTokenizer

ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    Activation.GELU: functional.gelu,
    Activation.GELU_NEW: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.GELU_TANH: lambda x: functional.gelu(x, approximate="tanh"),
    Activation.RELU: functional.relu,
}


class LayerOps(Protocol):
    """What PET modules do inside one layer. Every method returns its `y`, changed or not.

    One layer computes, with `[...]` marking the hooks and `x` the layer's input [tokens, H]:

        q, k, v = [project](x Wq + bq), ...                       query, key, value
        y  = [project](attend(q, k, v) Wo + bo)                   attention_output
        y  = [after_attention](y, residual=x)
        x1 = [norm](LayerNorm(y + x))                             Norm.ATTENTION
        y  = act([project](x1 Wi + bi))                           intermediate
        y  = [project](y Wd + bd)                                 output
        y  = [after_feedforward](y, residual=x1)
        x2 = [norm](LayerNorm(y + x1))                            Norm.OUTPUT
    """

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        """After a dense product: `y` [tokens, outputs] is x W + b, `x` its input [tokens, inputs].

        LoRA adds (x A^T) B^T alpha/rank, BitFit adds its delta. `intermediate` is before the
        activation.
        """
        ...

    def after_attention(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        """Before the attention block's residual addition and layer norm; [tokens, H] each.

        Houlsby's first adapter: y + up(act(down(y))).
        """
        ...

    def after_feedforward(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        """Before the feed-forward block's residual addition and layer norm; [tokens, H] each.

        `norm` is the frozen layer norm that follows, without the `norm` hook. As AdapterHub's
        defaults place them: Houlsby's second adapter (`original_ln_before=False`) is
        y + up(act(down(y))); Pfeiffer's (`original_ln_before=True`) is
        y + up(act(down(norm(y + residual)))). Both are followed by LayerNorm(y + residual).
        """
        ...

    def norm(self, name: Norm, y: Tensor) -> Tensor:
        """After a layer norm: BitFit adds its delta. `y` is [tokens, H]."""
        ...


class BareOps:
    """No PET module: every hook returns its `y`. A base for those that use a few hooks."""

    def project(self, name: Projection, x: Tensor, y: Tensor) -> Tensor:
        return y

    def after_attention(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        return y

    def after_feedforward(self, y: Tensor, residual: Tensor, norm: LayerNorm) -> Tensor:
        return y

    def norm(self, name: Norm, y: Tensor) -> Tensor:
        return y


BARE = BareOps()


@dataclass(frozen=True, slots=True)
class Dense:
    """x W^T + b; weight [outputs, inputs], bias [outputs]."""

    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class LayerNorm(NormWeights):
    """The norm itself, differentiable in its input."""

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class Embeddings(EmbeddingTables):
    """The embedding itself: [tokens, H]."""

    def __call__(self, packed: PackedTokens) -> Tensor:
        return TorchDense().embed(packed, self)


@dataclass(frozen=True, slots=True)
class Layer:
    """One post-norm transformer layer."""

    projections: Mapping[Projection, Dense]
    attention_norm: LayerNorm
    output_norm: LayerNorm
    heads: int
    activation: Activation

    def forward(
        self, x: Tensor, packed: PackedTokens, ops: LayerOps = BARE, *, firsts: bool = False
    ) -> Tensor:
        """[tokens, H] to [tokens, H]; see `LayerOps` for the order of things.

        Args:
            firsts: Only of each text's first token: to [texts, H].
        """
        return self.finished(*self.fed(*self.attended(x, packed, ops, firsts=firsts), ops), ops)

    def attended(
        self, x: Tensor, packed: PackedTokens, ops: LayerOps = BARE, *, firsts: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The attention block's output before any adapter, and its residual."""
        read = x.index_select(0, packed.offsets[:-1]) if firsts else x
        query = self._project(Projection.QUERY, read, ops)
        key = self._project(Projection.KEY, x, ops)
        value = self._project(Projection.VALUE, x, ops)
        attending = attend_firsts if firsts else attend
        mixed = attending(query, key, value, packed.plan, self.heads)
        return self._project(Projection.ATTENTION_OUTPUT, mixed, ops), read

    def fed(self, y: Tensor, residual: Tensor, ops: LayerOps = BARE) -> tuple[Tensor, Tensor]:
        """The feed-forward block's output before any adapter, and its residual, from what
        `attended` gave."""
        y = ops.after_attention(y, residual, self.attention_norm)
        x = ops.norm(Norm.ATTENTION, self.attention_norm(y + residual))
        wide = ACTIVATIONS[self.activation](self._project(Projection.INTERMEDIATE, x, ops))
        return self._project(Projection.OUTPUT, wide, ops), x

    def finished(self, y: Tensor, residual: Tensor, ops: LayerOps = BARE) -> Tensor:
        """The layer's output from what `fed` gave."""
        y = ops.after_feedforward(y, residual, self.output_norm)
        return ops.norm(Norm.OUTPUT, self.output_norm(y + residual))

    def _project(self, name: Projection, x: Tensor, ops: LayerOps) -> Tensor:
        return ops.project(name, x, self.projections[name](x))


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded encoder and its tokenizer. Immutable: threads and modules share it."""

    name: str
    info: BackboneInfo
    tokenizer: TextTokenizer
    embeddings: Embeddings
    layers: tuple[Layer, ...]

    @classmethod
    def load(cls, path: Path, name: str) -> Backbone:
        """Reads a backbone directory.

        Raises:
            FailedPrecondition, InvalidArgument, DataCorrupted: as `checkpoint.describe`.
        """
        info = checkpoint.describe(path)
        config = checkpoint.read_config(path)
        weights = _Weights.open(path, config)
        tokenizer = TextTokenizer.load(path, tokens_max=config.tokens_max, vocab=config.vocab)
        layers = tuple(weights.layer(index) for index in range(config.layers))
        return cls(name, info, tokenizer, weights.embeddings(), layers)

    @property
    def shape(self) -> BackboneShape:
        return self.info.shape

    @property
    def digest(self) -> str:
        return self.info.digest

    def embed(self, packed: PackedTokens) -> Tensor:
        """States below layer 0: [tokens, H]."""
        return self.embeddings(packed)

    def forward_layers(
        self,
        x: Tensor,
        packed: PackedTokens,
        start: int,
        stop: int,
        ops: Mapping[int, LayerOps] | None = None,
    ) -> Tensor:
        """Runs layers `start` to `stop` (excluded) on states [tokens, H].

        Args:
            ops: PET ops by layer index; a layer without an entry runs bare.
        """
        assert 0 <= start <= stop <= len(self.layers), f"layers {start} to {stop}"
        for index in range(start, stop):
            x = self.layers[index].forward(x, packed, (ops or {}).get(index, BARE))
        return x


@dataclass(frozen=True, slots=True)
class _Weights:
    """The tensors of a checkpoint by unprefixed name."""

    tensors: Mapping[str, Tensor]
    config: EncoderConfig

    @classmethod
    def open(cls, path: Path, config: EncoderConfig) -> _Weights:
        names = checkpoint.tensor_names(path, config)
        with safe_open(path / checkpoint.WEIGHTS_FILE, "pt") as stored:
            tensors = {
                name: stored.get_tensor(there).to(torch.float32) for name, there in names.items()
            }
        return cls(tensors, config)

    def embeddings(self) -> Embeddings:
        return Embeddings(
            self.tensors["embeddings.word_embeddings.weight"],
            self.tensors["embeddings.position_embeddings.weight"],
            self.tensors["embeddings.token_type_embeddings.weight"],
            self._norm("embeddings.LayerNorm"),
            self.config.position_offset,
        )

    def layer(self, index: int) -> Layer:
        norms = {
            norm: self._norm(checkpoint.path_of(index, place))
            for norm, place in checkpoint.NORM_PLACES.items()
        }
        return Layer(
            {
                name: self._dense(checkpoint.path_of(index, place))
                for name, place in checkpoint.PLACES.items()
            },
            norms[Norm.ATTENTION],
            norms[Norm.OUTPUT],
            self.config.heads,
            self.config.activation,
        )

    def _dense(self, name: str) -> Dense:
        return Dense(self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _norm(self, name: str) -> LayerNorm:
        return LayerNorm(
            self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], self.config.norm_epsilon
        )
