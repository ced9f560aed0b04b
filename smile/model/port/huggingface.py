"""Whole Hugging Face models on the same backbone: what differs becomes a module.

A model folder of transformers' BERT or RoBERTa, whose encoder is compared with the backbone's own
files tensor by tensor: see `difference` for what may differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from smile.errors import DataCorrupted, FailedPrecondition
from smile.formats import ExportFormat
from smile.model import checkpoint
from smile.model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, EncoderConfig
from smile.model.layout import HEAD_WEIGHT
from smile.model.port import backbone_files, sidecar, tokenizer_files
from smile.model.port.assembly import assembled
from smile.model.port.difference import Change, Differences, change
from smile.model.port.files import Config, TensorFile
from smile.model.port.heads import Architecture, class_name, head_of, labels_of, names_of
from smile.model.port.places import without_family
from smile.model.port.values import FloatArray, ImportedModule, Target, malformed, unsupported

PROBLEMS = (None, "single_label_classification")


def read(folder: Path, target: Target) -> ImportedModule:
    """A model folder as a module.

    Raises:
        InvalidArgument: a file is missing or malformed, it is another encoder than the backbone,
            or it differs in what no PET kind changes; the message names the first such tensors and
            by how much.
        FailedPrecondition: the backbone's own files are not at hand.
        InvalidSpec: it does not fit the backbone.
    """
    note = sidecar.read(folder)
    target = sidecar.agreed(target, note)
    base = backbone_files.required(
        target.folder, target.backbone, "a whole model is compared with its backbone"
    )
    config = Config.read(folder / CONFIG_FILE)
    architecture = _architecture(config, target)
    encoder = _same_encoder(folder, base)
    differences = Differences(list(_changes(folder, base, encoder)), target)
    head = _head(TensorFile(folder / WEIGHTS_FILE), architecture, target)
    labels: tuple[str, ...] = ()
    if HEAD_WEIGHT in head:
        labels = target.labels or labels_of(config, head[HEAD_WEIGHT].shape[0])
    spec, tensors = head_of(
        architecture, head, labels, None if note is None else note.head, target.pooling
    )
    pet = differences.pet(None if note is None else note.pet).placed(target.shape)
    return assembled(
        pet,
        spec,
        {**differences.tensors(pet), **tensors},
        target,
        source=ExportFormat.HUGGINGFACE,
        remarks=[*tokenizer_files.compared(folder, base), *differences.remarks(pet)],
    )


def _architecture(config: Config, target: Target) -> Architecture:
    known = {class_name(each, target.family): each for each in Architecture}
    stated = config.raw.get("architectures")
    named = str(stated[0]) if isinstance(stated, list) and len(stated) == 1 else ""
    if named not in known:
        raise config.refuse("architectures", f"models here are one of {', '.join(known)}")
    if config.raw.get("problem_type") not in PROBLEMS:
        raise config.refuse("problem_type", "a vPLM answers one label of several")
    return known[named]


def _same_encoder(folder: Path, base: Path) -> EncoderConfig:
    """The configuration that both have. Raises `InvalidArgument` where they differ."""
    try:
        mine = checkpoint.read_config(folder)
    except DataCorrupted as error:
        raise malformed(error.message) from error
    frozen = checkpoint.read_config(base)
    for field in EncoderConfig.__slots__:
        if getattr(mine, field) != getattr(frozen, field):
            raise unsupported(
                f"{folder / CONFIG_FILE}: {field} is {getattr(mine, field)}, the backbone has "
                f"{getattr(frozen, field)}; nothing was imported"
            )
    return frozen


def _changes(folder: Path, base: Path, encoder: EncoderConfig) -> Iterator[Change]:
    """Every tensor of the encoder that is not the backbone's."""
    try:
        mine = checkpoint.tensor_names(folder, encoder)
    except (DataCorrupted, FailedPrecondition) as error:
        raise malformed(error.message) from error
    frozen = checkpoint.tensor_names(base, encoder)
    my_file, frozen_file = TensorFile(folder / WEIGHTS_FILE), TensorFile(base / WEIGHTS_FILE)
    for name in mine:
        found = change(name, my_file.array(mine[name]), frozen_file.array(frozen[name]))
        if found is not None:
            yield found


def _head(file: TensorFile, architecture: Architecture, target: Target) -> dict[str, FloatArray]:
    """The head's tensors, by our names."""
    own = {without_family(name): name for name in file.shapes}
    names = names_of(architecture, target.family)
    if missing := sorted(set(names.values()) - own.keys()):
        raise malformed(f"{file.file} has no '{missing[0]}', which its {architecture} head needs")
    return {ours: file.array(own[theirs]) for ours, theirs in names.items()}
