"""What import and export speak of: formats, what an import is for, and modules on their way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from smile.errors import InvalidArgument
from smile.formats import ExportFormat
from smile.model.checkpoint import Family
from smile.model.initial import StoredArray
from smile.model.specs import BackboneShape, DType, ModuleSpec, Pooling

FloatArray: TypeAlias = NDArray[np.float16 | np.float32]


@dataclass(frozen=True, slots=True)
class Target:
    """What an import is made for, and what its owner says beside what the folder says.

    Attributes:
        backbone: Short name of the backbone.
        digest: Of that backbone.
        folder: The backbone's own files, where they are at hand.
        labels: In class order; empty: as the folder says.
        pooling: Of an embedding; None: as the folder says, else mean.
        precision: To store numbers in; None: float16 where that loses nothing, else float32.
    """

    backbone: str
    digest: str
    family: Family
    shape: BackboneShape
    folder: Path | None = None
    labels: tuple[str, ...] = ()
    pooling: Pooling | None = None
    precision: DType | None = None


@dataclass(frozen=True, slots=True)
class ImportedModule:
    """A module as it would be stored. `remarks` tell what is not as it was: rounded or folded."""

    spec: ModuleSpec
    tensors: Mapping[str, StoredArray]
    source: ExportFormat
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ExportedModule:
    """A stored module on its way out.

    Attributes:
        name: Full name of the version.
        data: Its stored bytes.
        tensors: What they hold, by the layout's names.
        shape, family: Of its backbone.
        folder: The backbone's own files, where they are at hand.
    """

    name: str
    spec: ModuleSpec
    data: bytes
    tensors: Mapping[str, StoredArray]
    shape: BackboneShape
    family: Family
    folder: Path | None = None

    @property
    def title(self) -> str:
        """The vPLM's own id."""
        return self.name.split("/")[3]

    def numbers(self, name: str) -> FloatArray:
        """A tensor of numbers, in its stored precision."""
        array = self.tensors[name]
        assert array.dtype in (np.float16, np.float32), f"{name} holds {array.dtype}"
        return array  # type: ignore[return-value]


def unsupported(message: str) -> InvalidArgument:
    """What to raise for a folder that no vPLM can express."""
    return InvalidArgument(message, reason="IMPORT_UNSUPPORTED")


def malformed(message: str) -> InvalidArgument:
    """What to raise for a folder that is not what it says it is."""
    return InvalidArgument(message, reason="IMPORT_MALFORMED")


def inexpressible(message: str) -> InvalidArgument:
    """What to raise for a vPLM that a format cannot express."""
    return InvalidArgument(message, reason="EXPORT_UNSUPPORTED")
