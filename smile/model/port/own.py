"""Our own format: the stored bytes, and their spec in `smile.json`. Holds every kind as it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from smile.errors import DataCorrupted
from smile.formats import ExportFormat
from smile.model import weights
from smile.model.port import card, sidecar
from smile.model.port.assembly import assembled
from smile.model.port.values import (
    ExportedModule,
    ImportedModule,
    Target,
    malformed,
)
from smile.model.specs import ModuleSpec

TENSORS_FILE = "module.safetensors"


def read(folder: Path, target: Target) -> ImportedModule:
    """A folder that `write` wrote, as a module; labels may be renamed, numbers stored otherwise.

    Raises:
        InvalidArgument: a file is missing or is not what it should be, or it was exported from a
            vPLM on another backbone.
    """
    note = sidecar.read(folder)
    file = folder / TENSORS_FILE
    if note is None or not file.is_file():
        raise malformed(f"{folder} has not both {sidecar.FILE} and {TENSORS_FILE}")
    if file.stat().st_size > (limit := weights.bytes_max(note.pet.kind)):
        raise malformed(f"{file} has {file.stat().st_size} bytes, at most {limit}")
    agreed = sidecar.agreed(target, note)
    spec = ModuleSpec(target.backbone, target.digest, note.pet, note.head, note.dtype)
    try:
        tensors = weights.decode(file.read_bytes(), spec, target.shape)
    except DataCorrupted as error:
        raise malformed(f"{file}: {error.message}") from error
    head = replace(note.head, labels=agreed.labels)
    return assembled(note.pet, head, tensors, agreed, source=ExportFormat.SMILE)


def write(module: ExportedModule, folder: Path) -> None:
    """A module of any kind as it is stored."""
    (folder / TENSORS_FILE).write_bytes(module.data)
    card.write(folder, module, ExportFormat.SMILE)
    sidecar.write(folder, module, ExportFormat.SMILE)
