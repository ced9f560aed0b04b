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
    if head.task is Task.TOKEN_CLASSIFICATION:
        return functional.linear(states, weights[HEAD_WEIGHT], weights[HEAD_BIAS])
    return answer_pooled(head, pool(states, packed, head.pooling), weights)


def answer_pooled(head: HeadSpec, features: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """The output of a head that reads one state per text, [texts, H]."""
    if head.task is Task.EMBEDDING:
        return functional.normalize(features, dim=1)
    if head.pooling is Pooling.POOLER:
        dense = functional.linear(features, weights[POOLER_WEIGHT], weights[POOLER_BIAS])
        features = dense.tanh()
    return functional.linear(features, weights[HEAD_WEIGHT], weights[HEAD_BIAS])


def reads_firsts(head: HeadSpec) -> bool:
    """Whether a head reads each text's first token alone: nobody needs the last layer's others."""
    return head.task is not Task.TOKEN_CLASSIFICATION and head.pooling is not Pooling.MEAN


def pool(states: Tensor, packed: PackedTokens, pooling: Pooling) -> Tensor:
    """One state per text: [tokens, H] to [texts, H]. The mean counts special tokens too; all other
    poolings begin with the first token's state."""
    if pooling is not Pooling.MEAN:
        return states.index_select(0, packed.offsets[:-1])
    sums = states.new_zeros(len(packed.lengths), states.shape[1])
    sums = sums.index_add(0, packed.texts, states)
    return sums / packed.offsets.diff()[:, None]
