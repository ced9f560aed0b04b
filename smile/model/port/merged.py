"""A vPLM as a whole Hugging Face model: backbone and module in one set of weights.

LoRA's products, the deltas of BitFit, diff-pruning and full training, and masks are carried out on
the backbone's own weights, in float32. Adapters cannot be: they are layers of their own. An
embedding is also a folder that sentence-transformers loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from smile.errors import InvalidArgument
from smile.formats import ExportFormat
from smile.model import checkpoint
from smile.model.checkpoint import CONFIG_FILE, PLACES, WEIGHTS_FILE, path_of
from smile.model.layout import (
    TABLES_NORM_BIAS,
    TABLES_NORM_WEIGHT,
    TABLES_WEIGHT,
    bias_name,
    delta_name,
    lora_name,
    mask_name,
    pet_layers,
    weight_name,
)
from smile.model.port import backbone_files, card, sidecar, tokenizer_files
from smile.model.port.files import TensorFile, read_json, write_json, write_tensors
from smile.model.port.heads import (
    Architecture,
    architecture_of,
    class_name,
    label_fields,
    stored_names,
    to_theirs,
)
from smile.model.port.places import BIASED, POOLER, without_family
from smile.model.port.values import ExportedModule, FloatArray, inexpressible
from smile.model.specs import PetKind, Pooling, Projection

Merge = Callable[[ExportedModule, int, dict[str, FloatArray]], None]


def write(module: ExportedModule, folder: Path) -> None:
    """A whole model that transformers loads by itself.

    Raises:
        InvalidArgument: the kind cannot be merged.
        FailedPrecondition: the backbone's own files are not at hand.
    """
    kind, head = module.spec.pet.kind, module.spec.head
    if kind not in MERGES:
        raise inexpressible(
            f"'{module.title}' is of kind '{kind}', whose adapters are layers of their own and "
            f"cannot be merged into weights; its format is {card.natural(kind)}"
        )
    base = backbone_files.required(
        module.folder, module.spec.backbone, "a whole model holds its backbone's weights"
    )
    architecture = architecture_of(head)
    tensors = _encoder(module, base)
    numbers = {name: module.numbers(name) for name in stored_names(head)}
    theirs = to_theirs(head, numbers, module.family)
    if architecture is Architecture.MODEL:
        theirs = _pooler(base)
    inside = "" if architecture is Architecture.MODEL else f"{module.family}."
    named = {f"{inside}{name}": array for name, array in tensors.items()}
    for name, array in theirs.items():
        named[f"{inside if name.startswith(POOLER) else ''}{name}"] = array.astype(np.float32)
    write_tensors(folder / WEIGHTS_FILE, named)
    write_json(folder / CONFIG_FILE, _config(module, base, architecture))
    tokenizer_files.copy(base, folder)
    if architecture is Architecture.MODEL:
        _write_sentence_transformer(module, folder)
    card.write(folder, module, ExportFormat.HUGGINGFACE)
    sidecar.write(folder, module, ExportFormat.HUGGINGFACE)


def _encoder(module: ExportedModule, base: Path) -> dict[str, FloatArray]:
    """The encoder's tensors with the module merged, float32, without a family's prefix."""
    names = checkpoint.tensor_names(base, checkpoint.read_config(base))
    file = TensorFile(base / WEIGHTS_FILE)
    tensors: dict[str, FloatArray] = {
        name: file.array(there).astype(np.float32) for name, there in names.items()
    }
    if module.spec.pet.kind is PetKind.FULL:
        _tables(module, tensors)
    for layer in pet_layers(module.spec.pet, module.shape):
        MERGES[module.spec.pet.kind](module, layer, tensors)
    for name, array in tensors.items():
        if not np.isfinite(array).all():
            raise InvalidArgument(f"merged, '{name}' has numbers that are not finite")
    return tensors


def _lora(module: ExportedModule, layer: int, tensors: dict[str, FloatArray]) -> None:
    pet = module.spec.pet
    for projection in pet.targets:
        name = lora_name(layer, projection)
        a, b = (module.numbers(f"{name}.{half}").astype(np.float32) for half in "ab")
        tensors[_weight(layer, projection)] += (b @ a) * np.float32(pet.alpha / pet.rank)


def _biases(module: ExportedModule, layer: int, tensors: dict[str, FloatArray]) -> None:
    for place, there in BIASED.items():
        delta = module.numbers(bias_name(layer, place))
        tensors[f"{path_of(layer, there)}.bias"] += delta.astype(np.float32)


def _sparse(module: ExportedModule, layer: int, tensors: dict[str, FloatArray]) -> None:
    for projection in Projection:
        name = delta_name(layer, projection)
        flat = tensors[_weight(layer, projection)].reshape(-1)
        values = module.numbers(f"{name}.values").astype(np.float32)
        flat[module.tensors[f"{name}.indices"]] += values
    _biases(module, layer, tensors)


def _masked(module: ExportedModule, layer: int, tensors: dict[str, FloatArray]) -> None:
    for projection in Projection:
        bits = module.tensors[mask_name(layer, projection)].astype(np.uint8, copy=False)
        flat = tensors[_weight(layer, projection)].reshape(-1)
        flat[np.unpackbits(bits, count=flat.size).astype(bool)] = 0


def _full(module: ExportedModule, layer: int, tensors: dict[str, FloatArray]) -> None:
    for place, there in BIASED.items():
        delta = module.numbers(weight_name(layer, place))
        tensors[f"{path_of(layer, there)}.weight"] += delta.astype(np.float32)
    _biases(module, layer, tensors)


def _tables(module: ExportedModule, tensors: dict[str, FloatArray]) -> None:
    """What lies below the layers."""
    deltas = module.numbers(TABLES_WEIGHT).astype(np.float32)
    first = 0
    for name in checkpoint.TABLES:
        rows = len(tensors[name])
        tensors[name] += deltas[first : first + rows]
        first += rows
    for name, half in ((TABLES_NORM_WEIGHT, "weight"), (TABLES_NORM_BIAS, "bias")):
        tensors[f"{checkpoint.TABLES_NORM}.{half}"] += module.numbers(name).astype(np.float32)


def _nothing(module: ExportedModule, layer: int, tensors: dict[str, FloatArray]) -> None:
    raise AssertionError("kind none has no layers")


MERGES: Mapping[PetKind, Merge] = {
    PetKind.NONE: _nothing,
    PetKind.LORA: _lora,
    PetKind.BITFIT: _biases,
    PetKind.DIFF_PRUNING: _sparse,
    PetKind.MASK_BERT: _masked,
    PetKind.FULL: _full,
}


def _weight(layer: int, projection: Projection) -> str:
    return f"{path_of(layer, PLACES[projection])}.weight"


def _pooler(base: Path) -> dict[str, FloatArray]:
    """The backbone's own pooler, which an encoder alone keeps, where it has one."""
    file = TensorFile(base / WEIGHTS_FILE)
    names = {without_family(name): name for name in file.shapes}
    return {name: file.array(there) for name, there in names.items() if name.startswith(POOLER)}


def _config(module: ExportedModule, base: Path, architecture: Architecture) -> dict[str, object]:
    raw = read_json(base / CONFIG_FILE)
    for name in ("torch_dtype", "_name_or_path", "id2label", "label2id", "num_labels"):
        raw.pop(name, None)
    raw |= {"architectures": [class_name(architecture, module.family)], "dtype": "float32"}
    if architecture is Architecture.SEQUENCE:
        raw["problem_type"] = "single_label_classification"
    return raw | label_fields(module.spec.head.labels)


def _write_sentence_transformer(module: ExportedModule, folder: Path) -> None:
    """Pooling and length 1, as sentence-transformers reads them."""
    package = "sentence_transformers.models"
    parts = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    write_json(
        folder / "modules.json",
        [
            {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
            for index, (path, kind) in enumerate(parts.items())
        ],
    )
    (folder / "1_Pooling").mkdir()
    (folder / "2_Normalize").mkdir()
    mean = module.spec.head.pooling is Pooling.MEAN
    pooling = {
        "word_embedding_dimension": module.shape.hidden,
        "pooling_mode_cls_token": not mean,
        "pooling_mode_mean_tokens": mean,
    }
    write_json(folder / "1_Pooling" / "config.json", pooling)
    write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": module.shape.tokens_max, "do_lower_case": False},
    )
