"""Prediction heads beside an adapter: `head_config.json` and `model_head.safetensors`.

The library has heads of its own (`AutoAdapterModel`), whose linear layers are numbered, and saves
those of transformers' classes as they are. A classification head of two layers with tanh between
is BERT's pooler and classifier; one of one layer reads the first token's state, ours with pooling
`cls`. Heads that pool by mean are stored as tagging heads: see `heads`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from smile.model.checkpoint import Family
from smile.model.layout import HEAD_BIAS, HEAD_WEIGHT, POOLER_BIAS, POOLER_WEIGHT
from smile.model.port import backbone_files
from smile.model.port.card import base_model
from smile.model.port.files import Config, TensorFile, write_json, write_tensors
from smile.model.port.heads import (
    Architecture,
    architecture_of,
    class_name,
    head_of,
    labels_of,
    names_of,
    stored_names,
)
from smile.model.port.places import without_family
from smile.model.port.values import ExportedModule, FloatArray, Target, malformed
from smile.model.specs import HeadSpec, Pooling, Task

CONFIG_FILE = "head_config.json"
TENSORS_FILE = "model_head.safetensors"
PICKLED_FILE = "pytorch_model_head.bin"
ONE_LAYER = {HEAD_WEIGHT: "1.weight", HEAD_BIAS: "1.bias"}
TWO_LAYERS = {
    POOLER_WEIGHT: "1.weight",
    POOLER_BIAS: "1.bias",
    HEAD_WEIGHT: "4.weight",
    HEAD_BIAS: "4.bias",
}
MADE_BY = "adapters.1.3.0"


def read(
    folder: Path, target: Target, hint: HeadSpec | None
) -> tuple[HeadSpec, dict[str, FloatArray]]:
    """The folder's head, by our names; an embedding where it has none.

    Raises:
        InvalidArgument: files are missing or malformed, or the head is none that a vPLM can have.
        FailedPrecondition: it reads the backbone's own pooler, whose files are not at hand.
    """
    if not (folder / CONFIG_FILE).is_file():
        return head_of(Architecture.MODEL, {}, (), hint, target.pooling)
    whole = Config.read(folder / CONFIG_FILE)
    file = TensorFile.find(folder, TENSORS_FILE, PICKLED_FILE)
    if whole.raw.get("config") is None:
        return _static(whole, file, target, hint)
    return _flexible(whole, file, target, hint)


def _static(
    whole: Config, file: TensorFile, target: Target, hint: HeadSpec | None
) -> tuple[HeadSpec, dict[str, FloatArray]]:
    """A head of one of transformers' classes; BERT's pooler is not stored with it."""
    classes = {
        class_name(architecture, target.family): architecture
        for architecture in (Architecture.SEQUENCE, Architecture.TOKEN)
    }
    stated = whole.text("model_class")
    if stated not in classes:
        raise whole.refuse("model_class", f"heads here are those of {', '.join(classes)}")
    names = dict(names_of(classes[stated], target.family))
    own = {without_family(name): name for name in file.shapes}
    found: dict[str, FloatArray] = {}
    pooled = classes[stated] is Architecture.SEQUENCE and target.family is Family.BERT
    if pooled and names[POOLER_WEIGHT] not in own:
        found = backbone_files.pooler(target)
        del names[POOLER_WEIGHT], names[POOLER_BIAS]
    found |= _taken(file, own, names)
    labels = target.labels or labels_of(whole, found[HEAD_WEIGHT].shape[0])
    return head_of(classes[stated], found, labels, hint, target.pooling)


def _flexible(
    whole: Config, file: TensorFile, target: Target, hint: HeadSpec | None
) -> tuple[HeadSpec, dict[str, FloatArray]]:
    """A head of the library's own."""
    config = whole.part("config")
    prefix = f"heads.{whole.text('name')}."
    own = {name.removeprefix(prefix): name for name in file.shapes}
    kind, layers = config.raw.get("head_type"), config.integer("layers")
    if kind == "tagging":
        if layers != 1:
            raise config.refuse("layers", "a tagging head has one here")
        found = _taken(file, own, ONE_LAYER)
        labels = target.labels or labels_of(config, found[HEAD_WEIGHT].shape[0])
        return head_of(Architecture.TOKEN, found, labels, hint, target.pooling)
    if kind != "classification":
        raise config.refuse("head_type", "heads here are 'classification' and 'tagging'")
    _check_classification(config, layers)
    found = _taken(file, own, TWO_LAYERS if layers == 2 else ONE_LAYER, config.raw.get("bias"))
    if config.raw.get("use_pooler"):
        found |= backbone_files.pooler(target)
    labels = target.labels or labels_of(config, found[HEAD_WEIGHT].shape[0])
    pooling = Pooling.POOLER if POOLER_WEIGHT in found else Pooling.CLS
    return HeadSpec(Task.SEQUENCE_CLASSIFICATION, labels, pooling), found


def _check_classification(config: Config, layers: int) -> None:
    if layers not in (1, 2):
        raise config.refuse("layers", "a classification head has one or two here")
    if layers == 2 and config.raw.get("activation_function") != "tanh":
        raise config.refuse("activation_function", "between two layers there is tanh here")
    if layers == 2 and config.raw.get("use_pooler"):
        raise config.refuse("use_pooler", "a pooler and a second layer are one too many")


def _taken(
    file: TensorFile, own: Mapping[str, str], names: Mapping[str, str], bias: object = True
) -> dict[str, FloatArray]:
    """Exactly these tensors, by our names. Without a bias of its own, a head's last layer has
    zeros."""
    missing = sorted(set(names.values()) - own.keys())
    without = bias is False and missing == [names[HEAD_BIAS]]
    if (missing and not without) or own.keys() - set(names.values()):
        raise malformed(
            f"{file.file} must hold {', '.join(sorted(names.values()))}, got "
            f"{', '.join(sorted(own))[:200]}"
        )
    found = {
        ours: file.array(own[theirs]) for ours, theirs in names.items() if theirs not in missing
    }
    if without:
        found[HEAD_BIAS] = np.zeros(found[HEAD_WEIGHT].shape[0], np.float16)
    return found


def about(module: ExportedModule) -> dict[str, object]:
    """What both of the library's configurations say of an export."""
    kind = {Family.BERT: "Bert", Family.ROBERTA: "Roberta"}[module.family]
    return {
        "hidden_size": module.shape.hidden,
        "model_class": f"{kind}AdapterModel",
        "model_name": base_model(module),
        "model_type": str(module.family),
        "name": module.title,
        "version": MADE_BY,
    }


def write(module: ExportedModule, folder: Path) -> None:
    """The head beside the adapter; nothing for an embedding."""
    head = module.spec.head
    if head.task is Task.EMBEDDING:
        return
    tagging = architecture_of(head) is Architecture.TOKEN
    names = TWO_LAYERS if POOLER_WEIGHT in stored_names(head) else ONE_LAYER
    config: dict[str, object] = {
        "activation_function": "tanh",
        "dropout_prob": None,
        "head_type": "tagging" if tagging else "classification",
        "label2id": {label: index for index, label in enumerate(head.labels)},
        "layers": 1 if names is ONE_LAYER else 2,
        "num_labels": len(head.labels),
    }
    if not tagging:
        config |= {"bias": True, "use_pooler": False}
    write_json(folder / CONFIG_FILE, {"config": config, **about(module)})
    tensors = {
        f"heads.{module.title}.{theirs}": module.numbers(ours) for ours, theirs in names.items()
    }
    write_tensors(folder / TENSORS_FILE, tensors)
