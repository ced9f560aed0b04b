"""Import and export: modules as other libraries store them. One file an ecosystem, registered here.

numpy and safetensors only; nothing is unpickled, no code of a folder's is run. Reading runs at its
owner's; what it gives is checked again by the platform, as every upload is.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from smile.errors import AlreadyExists, InvalidArgument
from smile.formats import ExportFormat
from smile.model.port import adapterhub, huggingface, merged, own, peft
from smile.model.port.card import natural
from smile.model.port.files import read_json
from smile.model.port.values import (
    ExportedModule,
    ImportedModule,
    Target,
    malformed,
)

__all__ = ["ExportFormat", "ExportedModule", "ImportedModule", "Target", "natural", "read", "write"]

READERS: Mapping[ExportFormat, Callable[[Path, Target], ImportedModule]] = {
    ExportFormat.PEFT: peft.read,
    ExportFormat.ADAPTERHUB: adapterhub.read,
    ExportFormat.HUGGINGFACE: huggingface.read,
    ExportFormat.SMILE: own.read,
}
WRITERS: Mapping[ExportFormat, Callable[[ExportedModule, Path], None]] = {
    ExportFormat.PEFT: peft.write,
    ExportFormat.ADAPTERHUB: adapterhub.write,
    ExportFormat.HUGGINGFACE: merged.write,
    ExportFormat.SMILE: own.write,
}


def read(folder: Path, target: Target) -> ImportedModule:
    """A folder of any known format as a module for `target`.

    Raises:
        InvalidArgument: it is of no known format, malformed, or says what no vPLM can express.
        FailedPrecondition: the backbone's own files are needed and not at hand.
        InvalidSpec: it does not fit the backbone.
    """
    return READERS[format_of(folder)](folder, target)


def format_of(folder: Path) -> ExportFormat:
    """The format of a folder. Raises `InvalidArgument` where it is none that is known."""
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is no folder", reason="FILE_UNREADABLE")
    if (folder / own.TENSORS_FILE).is_file():
        return ExportFormat.SMILE
    if (folder / peft.CONFIG_FILE).is_file():
        stated = read_json(folder / peft.CONFIG_FILE)
        return ExportFormat.PEFT if "peft_type" in stated else ExportFormat.ADAPTERHUB
    if (folder / "config.json").is_file():
        return ExportFormat.HUGGINGFACE
    raise malformed(
        f"{folder} has neither adapter_config.json (PEFT, AdapterHub) nor config.json (a Hugging "
        f"Face model) nor {own.TENSORS_FILE} (an export of SMILE)"
    )


def write(module: ExportedModule, folder: Path, made: ExportFormat) -> None:
    """A module as a new folder of the format; it appears complete or not at all.

    Raises:
        AlreadyExists: there is something at that path.
        InvalidArgument: the format cannot express the module, or the folder cannot be written.
        FailedPrecondition: the backbone's own files are needed and not at hand.
    """
    if folder.exists() or folder.is_symlink():
        raise AlreadyExists(f"{folder} exists; nothing is overwritten", reason="FOLDER_EXISTS")
    part: Path | None = None
    try:
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        part.chmod(0o755)
        WRITERS[made](module, part)
        part.rename(folder)
    except OSError as error:
        raise InvalidArgument(
            f"cannot write {folder}: {error.strerror or type(error).__name__}",
            reason="FILE_UNWRITABLE",
        ) from error
    finally:
        if part is not None:
            with suppress(OSError):  # moved into place, mostly
                shutil.rmtree(part)
