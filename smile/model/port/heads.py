"""Heads of transformers' BERT and RoBERTa, to ours and back.

| ours | theirs |
|---|---|
| sequence classification, pooling `pooler` | `...ForSequenceClassification`, tensor for tensor |
| sequence classification, pooling `cls` | the same, through a pooler that passes states on |
| sequence classification, pooling `mean` | `...ForTokenClassification`; the mean of its logits |
| token classification | `...ForTokenClassification`, tensor for tensor |
| embedding | the encoder alone |

No class of theirs pools by mean. A head is linear, so the mean of its answers to the tokens is its
answer to their mean: whoever loads such a folder averages logits over a text's tokens. Theirs
always takes a tanh between state and head; for `cls` that is a pooler of PASS times the identity,
where tanh(PASS x) / PASS is x to 2.5e-9 x^3, and a head divided by PASS, a power of two. Reading
back, such a pooler is recognised and both are undone to the bit.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

import numpy as np

from smile.errors import InvalidSpec
from smile.model.checkpoint import Family
from smile.model.layout import HEAD_BIAS, HEAD_WEIGHT, POOLER_BIAS, POOLER_WEIGHT
from smile.model.port.files import Config, shown
from smile.model.port.values import FloatArray
from smile.model.specs import HeadSpec, Pooling, Task

PASS = np.float32(2.0**-14)


class Architecture(enum.StrEnum):
    """Which of their classes a head belongs to."""

    SEQUENCE = "ForSequenceClassification"
    TOKEN = "ForTokenClassification"  # noqa: S105 (a task, not a secret)
    MODEL = "Model"


SEQUENCE_NAMES: Mapping[Family, Mapping[str, str]] = {
    Family.BERT: {
        POOLER_WEIGHT: "pooler.dense.weight",
        POOLER_BIAS: "pooler.dense.bias",
        HEAD_WEIGHT: "classifier.weight",
        HEAD_BIAS: "classifier.bias",
    },
    Family.ROBERTA: {
        POOLER_WEIGHT: "classifier.dense.weight",
        POOLER_BIAS: "classifier.dense.bias",
        HEAD_WEIGHT: "classifier.out_proj.weight",
        HEAD_BIAS: "classifier.out_proj.bias",
    },
}
TOKEN_NAMES: Mapping[str, str] = {HEAD_WEIGHT: "classifier.weight", HEAD_BIAS: "classifier.bias"}
TASKS: Mapping[Architecture, Task] = {
    Architecture.SEQUENCE: Task.SEQUENCE_CLASSIFICATION,
    Architecture.TOKEN: Task.TOKEN_CLASSIFICATION,
    Architecture.MODEL: Task.EMBEDDING,
}


def names_of(architecture: Architecture, family: Family) -> Mapping[str, str]:
    """Their tensors' names, without a family's prefix, by ours."""
    if architecture is Architecture.MODEL:
        return {}
    return SEQUENCE_NAMES[family] if architecture is Architecture.SEQUENCE else TOKEN_NAMES


def architecture_of(head: HeadSpec) -> Architecture:
    """Which of their classes expresses a head."""
    if head.task is Task.EMBEDDING:
        return Architecture.MODEL
    by_token = head.task is Task.TOKEN_CLASSIFICATION or head.pooling is Pooling.MEAN
    return Architecture.TOKEN if by_token else Architecture.SEQUENCE


def stored_names(head: HeadSpec) -> tuple[str, ...]:
    """Our names of a head's tensors."""
    if head.task is Task.EMBEDDING:
        return ()
    pooler = (POOLER_WEIGHT, POOLER_BIAS) if head.pooling is Pooling.POOLER else ()
    return (*pooler, HEAD_WEIGHT, HEAD_BIAS)


def class_name(architecture: Architecture, family: Family) -> str:
    """`BertForSequenceClassification`, say."""
    return {Family.BERT: "Bert", Family.ROBERTA: "Roberta"}[family] + architecture


def to_theirs(
    head: HeadSpec, tensors: Mapping[str, FloatArray], family: Family
) -> dict[str, FloatArray]:
    """Their tensors for our head; see the table above."""
    architecture = architecture_of(head)
    names = names_of(architecture, family)
    if architecture is Architecture.SEQUENCE and head.pooling is Pooling.CLS:
        tensors = _passed_on(tensors)
    return {theirs: tensors[ours] for ours, theirs in names.items()}


def to_ours(found: Mapping[str, FloatArray]) -> tuple[Pooling, dict[str, FloatArray]]:
    """A sequence classification head, by our names, as it is computed here: with its pooler, or
    without where that only passes states on."""
    pooler = found[POOLER_WEIGHT].astype(np.float32)
    passes = pooler.shape[0] == pooler.shape[1] and np.array_equal(
        pooler, PASS * np.eye(pooler.shape[0], dtype=np.float32)
    )
    if not passes or found[POOLER_BIAS].any():
        return Pooling.POOLER, dict(found)
    weight = found[HEAD_WEIGHT].astype(np.float32) * PASS
    return Pooling.CLS, {HEAD_WEIGHT: weight, HEAD_BIAS: found[HEAD_BIAS]}


def _passed_on(tensors: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    hidden = tensors[HEAD_WEIGHT].shape[1]
    return {
        POOLER_WEIGHT: PASS * np.eye(hidden, dtype=np.float32),
        POOLER_BIAS: np.zeros(hidden, dtype=np.float32),
        HEAD_WEIGHT: tensors[HEAD_WEIGHT].astype(np.float32) / PASS,
        HEAD_BIAS: tensors[HEAD_BIAS],
    }


def labels_of(config: Config, count: int) -> tuple[str, ...]:
    """The labels of `id2label` or `label2id`, in class order; `LABEL_0` and so on where there are
    none, as transformers has it."""
    by_id = {str(key): value for key, value in config.part("id2label").raw.items()}
    for label, key in config.part("label2id").raw.items():
        by_id.setdefault(str(key), label)
    if not by_id:
        return tuple(f"LABEL_{index}" for index in range(count))
    labels = tuple(by_id.get(str(index)) for index in range(count))
    if len(by_id) != count or not all(isinstance(label, str) for label in labels):
        raise config.wrong("id2label", f"a label for each of {count} classes, from 0")
    return tuple(str(label) for label in labels)


def label_fields(labels: tuple[str, ...]) -> dict[str, object]:
    """The labels as a configuration says them; nothing where there are none."""
    if not labels:
        return {}
    return {
        "id2label": {str(index): label for index, label in enumerate(labels)},
        "label2id": {label: index for index, label in enumerate(labels)},
    }


def head_of(
    architecture: Architecture,
    found: Mapping[str, FloatArray],
    labels: tuple[str, ...],
    hint: HeadSpec | None,
    pooling: Pooling | None,
) -> tuple[HeadSpec, dict[str, FloatArray]]:
    """Our head of their tensors (by our names). `hint` is what an export of ours says of itself,
    `pooling` how an embedding's states become one.

    Raises:
        InvalidSpec: there are not as many labels as classes, or one repeats.
    """
    if architecture is Architecture.MODEL:
        return HeadSpec(Task.EMBEDDING, (), pooling or Pooling.MEAN), {}
    classes = found[HEAD_WEIGHT].shape[0]
    if len(labels) != classes:
        raise InvalidSpec(
            f"the head has {classes} classes, got {len(labels)} labels: {shown(list(labels))}"
        )
    if architecture is Architecture.SEQUENCE:
        pooled, tensors = to_ours(found)
        return HeadSpec(Task.SEQUENCE_CLASSIFICATION, labels, pooled), tensors
    if hint is not None and architecture_of(hint) is Architecture.TOKEN:
        return HeadSpec(hint.task, labels, hint.pooling), dict(found)
    return HeadSpec(Task.TOKEN_CLASSIFICATION, labels), dict(found)
