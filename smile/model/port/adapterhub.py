"""Bottleneck adapters as AdapterHub's `adapters` library stores them, in safetensors.

https://docs.adapterhub.ml/loading.html. `adapter_config.json` and `adapter.safetensors`, and for a
head `head_config.json` and `model_head.safetensors`. A module here has one width in all layers from
some layer upwards; what a folder has less than that is filled with zeros, which change no answer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smile.formats import ExportFormat
from smile.model.checkpoint import path_of
from smile.model.layout import ADAPTED_BLOCKS, Block, adapter_name, pet_layers
from smile.model.port import adapterhub_config, adapterhub_head, card, sidecar
from smile.model.port.adapterhub_config import BottleneckConfig
from smile.model.port.assembly import assembled
from smile.model.port.files import TensorFile, write_json, write_tensors
from smile.model.port.places import without_family
from smile.model.port.values import (
    ExportedModule,
    FloatArray,
    ImportedModule,
    Target,
    inexpressible,
    malformed,
    unsupported,
)
from smile.model.specs import PetSpec

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter.safetensors"
PICKLED_FILE = "pytorch_adapter.bin"
BLOCKS: Mapping[Block, str] = {Block.ATTENTION: "attention.output", Block.FEEDFORWARD: "output"}
PARTS: Mapping[str, str] = {
    "down.weight": "adapter_down.0.weight",
    "down.bias": "adapter_down.0.bias",
    "up.weight": "adapter_up.weight",
    "up.bias": "adapter_up.bias",
}
_TENSOR = re.compile(
    r"encoder\.layer\.(\d+)\.((?:attention\.)?output)\.adapters\.([^.]+)\.(.+)", re.ASCII
)


class _Place(NamedTuple):
    layer: int
    block: Block


_Adapter = dict[str, FloatArray]  # by the keys of PARTS


def read(folder: Path, target: Target) -> ImportedModule:
    """An AdapterHub folder as a module; without a head it embeds.

    Raises:
        InvalidArgument: a file is missing or malformed, or says what no vPLM can express.
        FailedPrecondition: its head reads a part of the backbone that is not at hand.
        InvalidSpec: it does not fit the backbone.
    """
    config = BottleneckConfig.read(folder / CONFIG_FILE)
    note = sidecar.read(folder)
    target = sidecar.agreed(target, note)
    file = TensorFile.find(folder, TENSORS_FILE, PICKLED_FILE)
    found = _found(file, config, target)
    head, tensors = adapterhub_head.read(folder, target, None if note is None else note.head)
    pet, adapters, remarks = _uniform(found, config, target)
    return assembled(
        pet,
        head,
        {**adapters, **tensors},
        target,
        source=ExportFormat.ADAPTERHUB,
        remarks=remarks,
    )


def _found(file: TensorFile, config: BottleneckConfig, target: Target) -> dict[_Place, _Adapter]:
    """Every tensor in its place. Raises `InvalidArgument` for one that has none, and where the
    tensors are not those that the configuration promises."""
    blocks = {there: block for block, there in BLOCKS.items()}
    parts = {there: ours for ours, there in PARTS.items()}
    found: dict[_Place, _Adapter] = {}
    for name in file.shapes:
        place = _TENSOR.fullmatch(without_family(name))
        if place is None or place[3] != config.name or place[4] not in parts:
            raise unsupported(
                f"{file.file}: tensor '{name}' is no part of a bottleneck adapter "
                f"'{config.name}'; nothing was imported"
            )
        at = _Place(int(place[1]), blocks[place[2]])
        found.setdefault(at, {})[parts[place[4]]] = file.array(name)
    meant = {
        _Place(layer, block)
        for layer in range(target.shape.layers)
        for block in config.blocks
        if layer not in config.left_out
    }
    if odd := sorted(meant ^ found.keys()):
        there = "no" if odd[0] in meant else "an unexpected"
        raise malformed(
            f"{file.file} has {there} adapter in layer {odd[0].layer} after {odd[0].block}; "
            f"'{target.backbone}' has {target.shape.layers} layers, left out are "
            f"{sorted(config.left_out)}"
        )
    for at, adapter in found.items():
        _check(file, at, adapter, target.shape.hidden)
    return found


def _check(file: TensorFile, at: _Place, adapter: _Adapter, hidden: int) -> None:
    if missing := sorted(PARTS.keys() - adapter.keys()):
        raise malformed(f"{file.file}: layer {at.layer} after {at.block} has no {missing[0]}")
    rank = adapter["down.bias"].size
    wanted = {
        "down.weight": (rank, hidden),
        "down.bias": (rank,),
        "up.weight": (hidden, rank),
        "up.bias": (hidden,),
    }
    for part, shape in wanted.items():
        if adapter[part].shape != shape:
            raise unsupported(
                f"{file.file}: {part} in layer {at.layer} after {at.block} is "
                f"{list(adapter[part].shape)}, here it is {list(shape)}; nothing was imported"
            )


def _uniform(
    found: Mapping[_Place, _Adapter], config: BottleneckConfig, target: Target
) -> tuple[PetSpec, dict[str, FloatArray], list[str]]:
    """One width in every layer from the first upwards, after every block of the kind."""
    if not found:
        raise unsupported("the adapter is left out of every layer; nothing was imported")
    first, hidden = min(place.layer for place in found), target.shape.hidden
    rank = max(adapter["down.bias"].size for adapter in found.values())
    tensors: dict[str, FloatArray] = {}
    remarks: list[str] = []
    for layer in range(first, target.shape.layers):
        for block in ADAPTED_BLOCKS[config.kind]:
            name = adapter_name(layer, block)
            adapter = found.get(_Place(layer, block))
            if adapter is None:
                adapter = _nothing(hidden)
                remarks.append(f"{name}: not in the folder, zeros here")
            elif config.scaling != 1:
                adapter = _scaled(adapter, config.scaling)
                remarks.append(f"{name}: scaling {config.scaling:g} is multiplied into up")
            for part, array in _widened(adapter, rank).items():
                tensors[f"{name}.{part}"] = array
    return PetSpec(config.kind, first, rank), tensors, remarks


def _nothing(hidden: int) -> _Adapter:
    """An adapter of width 0, which adds nothing."""
    return {
        "down.weight": np.zeros((0, hidden), np.float16),
        "down.bias": np.zeros(0, np.float16),
        "up.weight": np.zeros((hidden, 0), np.float16),
        "up.bias": np.zeros(hidden, np.float16),
    }


def _scaled(adapter: _Adapter, scaling: float) -> _Adapter:
    up = {
        part: adapter[part].astype(np.float32) * np.float32(scaling)
        for part in ("up.weight", "up.bias")
    }
    return adapter | up


def _widened(adapter: _Adapter, rank: int) -> _Adapter:
    """With zeros up to `rank`: relu and swish leave them zeros."""
    spare = rank - adapter["down.bias"].size
    return {
        "down.weight": np.pad(adapter["down.weight"], ((0, spare), (0, 0))),
        "down.bias": np.pad(adapter["down.bias"], (0, spare)),
        "up.weight": np.pad(adapter["up.weight"], ((0, 0), (0, spare))),
        "up.bias": adapter["up.bias"],
    }


def write(module: ExportedModule, folder: Path) -> None:
    """A Pfeiffer or Houlsby module as an AdapterHub folder.

    Raises:
        InvalidArgument: its kind is no bottleneck adapter.
    """
    pet = module.spec.pet
    if pet.kind not in ADAPTED_BLOCKS:
        raise inexpressible(
            f"AdapterHub folders hold bottleneck adapters, '{module.title}' is of kind "
            f"'{pet.kind}'; its format is {card.natural(pet.kind)}"
        )
    tensors: dict[str, FloatArray] = {}
    layers = pet_layers(pet, module.shape)
    for layer in layers:
        for block in ADAPTED_BLOCKS[pet.kind]:
            there = f"{module.family}.{path_of(layer, BLOCKS[block])}.adapters.{module.title}"
            for ours, theirs in PARTS.items():
                array = module.numbers(f"{adapter_name(layer, block)}.{ours}")
                tensors[f"{there}.{theirs}"] = array
    write_tensors(folder / TENSORS_FILE, tensors)
    config = adapterhub_config.written(
        pet.kind, module.shape.hidden, pet.rank, list(range(layers.start))
    )
    write_json(folder / CONFIG_FILE, {"config": config, **adapterhub_head.about(module)})
    adapterhub_head.write(module, folder)
    card.write(folder, module, ExportFormat.ADAPTERHUB)
    sidecar.write(folder, module, ExportFormat.ADAPTERHUB)
