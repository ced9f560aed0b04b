"""LoRA as PEFT stores it: `adapter_config.json` and `adapter_model.safetensors`.

https://huggingface.co/docs/peft/developer_guides/checkpoint. A module here has one rank, one scale
and one set of targets in all layers from some layer upwards. What a folder has less than that is
filled with zeros, and scales of its own are multiplied into B: both change no answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from smile.formats import ExportFormat
from smile.model.checkpoint import PLACES, Family, path_of
from smile.model.layout import (
    HEAD_WEIGHT,
    POOLER_BIAS,
    POOLER_WEIGHT,
    lora_name,
    pet_layers,
    projection_shape,
)
from smile.model.port import backbone_files, card, sidecar
from smile.model.port.assembly import assembled
from smile.model.port.files import Config, TensorFile, write_json, write_tensors
from smile.model.port.heads import (
    Architecture,
    architecture_of,
    head_of,
    labels_of,
    names_of,
    stored_names,
    to_theirs,
)
from smile.model.port.peft_config import LoraConfig
from smile.model.port.places import POOLER, Dense, dense_at, without_family
from smile.model.port.values import (
    ExportedModule,
    FloatArray,
    ImportedModule,
    Target,
    inexpressible,
    malformed,
    unsupported,
)
from smile.model.specs import PetKind, PetSpec, Projection

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
PICKLED_FILE = "adapter_model.bin"
PREFIX = "base_model.model."
TASK_TYPES: Mapping[str | None, Architecture] = {
    "SEQ_CLS": Architecture.SEQUENCE,
    "TOKEN_CLS": Architecture.TOKEN,
    "FEATURE_EXTRACTION": Architecture.MODEL,
    None: Architecture.MODEL,
}
_UPDATE = re.compile(r"(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class _Update:
    """One low-rank update: A [r, inputs], B [outputs, r]; B A is multiplied by alpha / r."""

    a: FloatArray
    b: FloatArray
    alpha: float

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def dense(self) -> FloatArray:
        """[outputs, inputs]."""
        product: FloatArray = self.b.astype(np.float32) @ self.a.astype(np.float32)
        return product * np.float32(self.scale)


@dataclass(slots=True)
class _Found:
    """What a folder holds: updates of the encoder's products, one of its pooler, and the head by
    their names."""

    updates: dict[Dense, _Update] = field(default_factory=dict)
    pooler: _Update | None = None
    head: dict[str, FloatArray] = field(default_factory=dict)


def read(folder: Path, target: Target) -> ImportedModule:
    """A PEFT folder as a module.

    Raises:
        InvalidArgument: a file is missing or malformed, or says what no vPLM can express.
        FailedPrecondition: its head reads a part of the backbone that is not at hand.
        InvalidSpec: it does not fit the backbone.
    """
    config = LoraConfig.read(folder / CONFIG_FILE)
    note = sidecar.read(folder)
    target = sidecar.agreed(target, note)
    architecture = _architecture(config.config)
    found = _found(TensorFile.find(folder, TENSORS_FILE, PICKLED_FILE), config, target)
    head = _head(found, architecture, target)
    labels = target.labels or _labels(folder, head)
    spec, tensors = head_of(
        architecture, head, labels, None if note is None else note.head, target.pooling
    )
    pet, updates, remarks = _uniform(found.updates, target)
    if found.pooler is not None:
        remarks.append(f"{POOLER_WEIGHT}: LoRA on the pooler is multiplied out into it")
    return assembled(
        pet, spec, {**updates, **tensors}, target, source=ExportFormat.PEFT, remarks=remarks
    )


def _architecture(config: Config) -> Architecture:
    stated = config.raw.get("task_type")
    if stated is not None and not (isinstance(stated, str) and stated in TASK_TYPES):
        raise config.refuse("task_type", "a vPLM classifies texts or tokens, or embeds")
    return TASK_TYPES[stated]


def _found(file: TensorFile, config: LoraConfig, target: Target) -> _Found:
    """Every tensor in its place. Raises `InvalidArgument` for one that has none."""
    found = _Found()
    halves: dict[str, dict[str, str]] = {}
    for name in file.shapes:
        path = name.removeprefix(PREFIX)
        if (half := _UPDATE.fullmatch(path)) is not None:
            halves.setdefault(half[1], {})[half[2]] = name
        else:
            found.head[without_family(path)] = file.array(name)
    if not halves:
        raise malformed(f"{file.file} has no tensor of LoRA, like '...lora_A.weight'")
    for path, parts in halves.items():
        if parts.keys() != {"A", "B"}:
            raise malformed(f"{file.file} has only one of lora_A and lora_B for '{path}'")
        update = _Update(file.array(parts["A"]), file.array(parts["B"]), config.alpha(path))
        if update.a.ndim != 2 or update.b.ndim != 2 or update.rank != config.rank(path):
            raise malformed(
                f"{file.file}: rank of '{path}' is {config.rank(path)} by its configuration, A has "
                f"shape {list(update.a.shape)} and B {list(update.b.shape)}"
            )
        _place(found, path, update, file, target)
    config.check_targets(halves.keys(), target.shape.layers, target.family)
    return found


def _place(found: _Found, path: str, update: _Update, file: TensorFile, target: Target) -> None:
    inside = without_family(path)
    dense = dense_at(inside, target.shape.layers)
    if dense is None and inside == POOLER:
        found.pooler = update
        return
    if dense is None:
        raise unsupported(
            f"{file.file}: LoRA on '{path}', which is none of the dense products of the "
            f"{target.shape.layers} layers of '{target.backbone}'; nothing was imported"
        )
    outputs, inputs = projection_shape(dense.projection, target.shape)
    if update.a.shape[1:] != (inputs,) or update.b.shape != (outputs, update.rank):
        raise unsupported(
            f"{file.file}: LoRA on '{path}' has A {list(update.a.shape)} and B "
            f"{list(update.b.shape)}, on '{target.backbone}' they are [r, {inputs}] and "
            f"[{outputs}, r]; nothing was imported"
        )
    found.updates[dense] = update


def _head(found: _Found, architecture: Architecture, target: Target) -> dict[str, FloatArray]:
    """The head's tensors, by our names; a frozen pooler from the backbone's own files.

    Raises:
        InvalidArgument: the folder lacks some, or has others.
        FailedPrecondition: the pooler is the backbone's, whose files are not at hand.
    """
    names = dict(names_of(architecture, target.family))
    head = {ours: found.head[theirs] for ours, theirs in names.items() if theirs in found.head}
    if odd := sorted(found.head.keys() - names.values()):
        raise unsupported(
            f"tensor '{odd[0]}' belongs to no {architecture} head; nothing was imported"
        )
    if architecture is Architecture.SEQUENCE and target.family is Family.BERT:
        if POOLER_WEIGHT not in head:
            head |= backbone_files.pooler(target)
        if found.pooler is not None:
            dense = head[POOLER_WEIGHT].astype(np.float32) + found.pooler.dense()
            head[POOLER_WEIGHT] = dense
    if missing := sorted(names.keys() - head.keys()):
        raise malformed(
            f"the folder has no '{names[missing[0]]}': an adapter for classification is stored "
            "with its head (modules_to_save)"
        )
    assert POOLER_BIAS not in names or POOLER_BIAS in head
    return head


def _labels(folder: Path, head: Mapping[str, FloatArray]) -> tuple[str, ...]:
    """PEFT stores no labels; a `config.json` beside it may."""
    if HEAD_WEIGHT not in head:
        return ()
    file = folder / "config.json"
    config = Config.read(file) if file.is_file() else Config({}, file)
    return labels_of(config, head[HEAD_WEIGHT].shape[0])


def _uniform(
    updates: Mapping[Dense, _Update], target: Target
) -> tuple[PetSpec, dict[str, FloatArray], list[str]]:
    """One rank, one scale, one set of targets in every layer from the first upwards."""
    if not updates:
        raise unsupported("LoRA on the pooler alone; nothing was imported")
    first = min(dense.layer for dense in updates)
    targets = tuple(p for p in Projection if any(d.projection is p for d in updates))
    rank = max(update.rank for update in updates.values())
    scale = Counter(update.scale for update in updates.values()).most_common(1)[0][0]
    whole = [u.alpha for u in updates.values() if u.rank == rank and u.scale == scale]
    alpha = whole[0] if whole else scale * rank
    tensors: dict[str, FloatArray] = {}
    remarks: list[str] = []
    for layer in range(first, target.shape.layers):
        for projection in targets:
            outputs, inputs = projection_shape(projection, target.shape)
            update = updates.get(Dense(layer, projection))
            name = lora_name(layer, projection)
            a: FloatArray = np.zeros((rank, inputs), np.float16)
            b: FloatArray = np.zeros((outputs, rank), np.float16)
            if update is None:
                remarks.append(f"{name}: not in the folder, zeros here")
            else:
                a, b = _widened(update, rank, scale)
                if update.scale != scale:
                    remarks.append(f"{name}: its scale {update.scale:g} is multiplied into b")
            tensors[f"{name}.a"], tensors[f"{name}.b"] = a, b
    return PetSpec(PetKind.LORA, first, rank, alpha, targets), tensors, remarks


def _widened(update: _Update, rank: int, scale: float) -> tuple[FloatArray, FloatArray]:
    """A and B with zeros up to `rank`, scales made equal."""
    spare = rank - update.rank
    b = update.b
    if update.scale != scale:
        b = b.astype(np.float32) * np.float32(update.scale / scale)
    return np.pad(update.a, ((0, spare), (0, 0))), np.pad(b, ((0, 0), (0, spare)))


def write(module: ExportedModule, folder: Path) -> None:
    """A LoRA module as a PEFT folder.

    Raises:
        InvalidArgument: its kind is no LoRA.
    """
    spec = module.spec
    if spec.pet.kind is not PetKind.LORA:
        raise inexpressible(
            f"PEFT folders hold LoRA, '{module.title}' is of kind '{spec.pet.kind}'; its format is "
            f"{card.natural(spec.pet.kind)}"
        )
    architecture = architecture_of(spec.head)
    prefix = "" if architecture is Architecture.MODEL else f"{module.family}."
    tensors: dict[str, FloatArray] = {}
    for dense in _written(module):
        ours = lora_name(dense.layer, dense.projection)
        path = PREFIX + prefix + path_of(dense.layer, PLACES[dense.projection])
        tensors[f"{path}.lora_A.weight"] = module.numbers(f"{ours}.a")
        tensors[f"{path}.lora_B.weight"] = module.numbers(f"{ours}.b")
    numbers = {name: module.numbers(name) for name in stored_names(spec.head)}
    for theirs, array in to_theirs(spec.head, numbers, module.family).items():
        inside = prefix if theirs.startswith(POOLER) else ""
        tensors[PREFIX + inside + theirs] = array
    write_tensors(folder / TENSORS_FILE, tensors)
    write_json(folder / CONFIG_FILE, _config(module, architecture))
    card.write(folder, module, ExportFormat.PEFT)
    sidecar.write(folder, module, ExportFormat.PEFT)


def _written(module: ExportedModule) -> list[Dense]:
    pet = module.spec.pet
    layers = pet_layers(pet, module.shape)
    return [Dense(layer, projection) for layer in layers for projection in pet.targets]


def _config(module: ExportedModule, architecture: Architecture) -> dict[str, object]:
    pet = module.spec.pet
    theirs = {each: stated for stated, each in TASK_TYPES.items() if stated is not None}
    return {
        "peft_type": "LORA",
        "task_type": theirs[architecture],
        "base_model_name_or_path": card.base_model(module),
        "inference_mode": True,
        "r": pet.rank,
        "lora_alpha": int(pet.alpha) if pet.alpha.is_integer() else pet.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "modules_to_save": _saved(module, architecture),
        **_targets(module),
    }


def _saved(module: ExportedModule, architecture: Architecture) -> list[str] | None:
    if architecture is Architecture.MODEL:
        return None
    pooled = architecture is Architecture.SEQUENCE and module.family is Family.BERT
    return ["classifier", "pooler"] if pooled else ["classifier"]


def _targets(module: ExportedModule) -> dict[str, object]:
    """Targets as names and layers; as an expression where the name `output.dense` would also mean
    `attention.output.dense`."""
    pet, layers = module.spec.pet, list(pet_layers(module.spec.pet, module.shape))
    places = [PLACES[projection] for projection in pet.targets]
    if Projection.OUTPUT in pet.targets and Projection.ATTENTION_OUTPUT not in pet.targets:
        numbers, names = "|".join(map(str, layers)), "|".join(map(re.escape, places))
        return {"target_modules": rf"(.*\.)?encoder\.layer\.({numbers})\.({names})"}
    every = len(layers) == module.shape.layers
    return {"target_modules": places, "layers_to_transform": None if every else layers}
