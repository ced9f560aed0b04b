"""Task heads over the backbone's last states, for one vPLM: the definition.

- sequence classification: pool, then one dense product to the labels; pooling `pooler` is BERT's
  own: the first token's state through a dense product and tanh;
- token classification: the same product for every token;
- embedding: pool, then L2-normalise.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from smile.model.layout import HEAD_BIAS, HEAD_WEIGHT, POOLER_BIAS, POOLER_WEIGHT
from smile.model.packing import PackedTokens
from smile.model.specs import HeadSpec, Pooling, Task


def answer(
    head: HeadSpec, states: Tensor, packed: PackedTokens, weights: Mapping[str, Tensor]
) -> Tensor:
    """The head's output for states [tokens, H].

    Returns:
        Logits [texts, labels], token logits [tokens, labels] or embeddings [texts, H].
    """
    if head.task is Task.EMBEDDING:
        return functional.normalize(pool(states, packed, head.pooling), dim=1)
    if head.task is Task.SEQUENCE_CLASSIFICATION:
        states = pool(states, packed, head.pooling)
        if head.pooling is Pooling.POOLER:
            dense = functional.linear(states, weights[POOLER_WEIGHT], weights[POOLER_BIAS])
            states = dense.tanh()
    return functional.linear(states, weights[HEAD_WEIGHT], weights[HEAD_BIAS])


def pool(states: Tensor, packed: PackedTokens, pooling: Pooling) -> Tensor:
    """One state per text: [tokens, H] to [texts, H]. The mean counts special tokens too; all other
    poolings begin with the first token's state."""
    if pooling is not Pooling.MEAN:
        return states.index_select(0, packed.offsets[:-1])
    sums = states.new_zeros(len(packed.lengths), states.shape[1])
    sums = sums.index_add(0, packed.texts, states)
    return sums / packed.offsets.diff()[:, None]
