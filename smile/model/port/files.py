"""Folders of other people's: JSON and safetensors, read with errors that name file and field.

Nothing is unpickled: `.bin` files are refused with the way to convert them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from smile.errors import InvalidArgument
from smile.model.port.values import FloatArray, malformed, unsupported

JSON_BYTES_MAX = 64 << 20  # a tokenizer of a large vocabulary has 30 MB
LENGTH_BYTES = 8
SHOWN_CHARS_MAX = 120


def shown(value: object) -> str:
    """A value from a file, short and printable."""
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "..."


def read_json(file: Path) -> dict[str, object]:
    """A JSON object. Raises `InvalidArgument` where there is none."""
    try:
        if file.stat().st_size > JSON_BYTES_MAX:
            raise malformed(f"{file} has {file.stat().st_size} bytes, at most {JSON_BYTES_MAX}")
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidArgument(
            f"cannot read {file}: {error.strerror or type(error).__name__}",
            reason="FILE_UNREADABLE",
        ) from error
    except (ValueError, RecursionError) as error:
        raise malformed(f"{file} is not JSON: {shown(error)}") from error
    if not isinstance(found, dict):
        raise malformed(f"{file} is not a JSON object")
    return found


def write_json(file: Path, value: object) -> None:
    """A JSON object, keys in the order given."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_tensors(file: Path, tensors: Mapping[str, FloatArray]) -> None:
    """Tensors as safetensors, marked as the libraries of PyTorch's world expect."""
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    save_file(plain, file, {"format": "pt"})


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration, and the file it is from."""

    raw: Mapping[str, object]
    file: Path

    @classmethod
    def read(cls, file: Path) -> Config:
        return cls(read_json(file), file)

    def part(self, field: str) -> Config:
        """An object inside; empty where there is none."""
        found = self.raw.get(field)
        if found is not None and not isinstance(found, dict):
            raise self.wrong(field, "an object")
        return Config(found or {}, self.file)

    def text(self, field: str) -> str:
        value = self.raw.get(field)
        if not isinstance(value, str):
            raise self.wrong(field, "a text")
        return value

    def integer(self, field: str, *, least: int = 1) -> int:
        value = self.raw.get(field)
        if type(value) is not int or value < least:
            raise self.wrong(field, f"an integer >= {least}")
        return value

    def number(self, field: str) -> float:
        value = self.raw.get(field)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(field, "a number")
        try:
            found = float(value)
        except OverflowError as error:
            raise self.wrong(field, "a number that a float holds") from error
        if not math.isfinite(found):
            raise self.wrong(field, "a finite number")
        return found

    def wrong(self, field: str, wanted: str) -> InvalidArgument:
        return malformed(f"{self.file}: {field} must be {wanted}, got {shown(self.raw.get(field))}")

    def refuse(self, field: str, why: str) -> InvalidArgument:
        """What to raise for a value that no vPLM can express."""
        return unsupported(
            f"{self.file}: {field} is {shown(self.raw.get(field))}, and {why}; nothing was imported"
        )


class TensorFile:
    """A safetensors file: names, shapes, and arrays one at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            with safe_open(file, "numpy") as stored:
                slices = {name: stored.get_slice(name) for name in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise malformed(f"{file} is not a safetensors file: {shown(error)}") from error
        self.shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        self._dtypes = {name: str(part.get_dtype()) for name, part in slices.items()}

    @classmethod
    def find(cls, folder: Path, name: str, pickled: str) -> TensorFile:
        """`folder/name`. Raises `InvalidArgument`, also where only the pickled form is there."""
        if (folder / name).is_file():
            return cls(folder / name)
        if (folder / pickled).is_file():
            raise InvalidArgument(
                f"{folder / pickled} is a pickle, which can run code and is never read; if you "
                "trust it, load it where it was made (torch, weights_only=True) and save it as "
                f"{name} with safetensors.torch.save_file",
                reason="PICKLE_REFUSED",
            )
        raise malformed(f"no {name} in {folder}")

    def array(self, name: str) -> FloatArray:
        """Numbers as they are stored; bfloat16 as float32, which holds it exactly."""
        dtype = self._dtypes[name]
        if dtype == "BF16":
            return self._widened(name)
        if dtype not in ("F16", "F32"):
            raise unsupported(
                f"{self.file}: tensor '{name}' is {dtype}, must be one of F32, F16, BF16"
            )
        with safe_open(self.file, "numpy") as stored:
            found: FloatArray = stored.get_tensor(name)
        return found

    def _widened(self, name: str) -> FloatArray:
        """bfloat16 is the upper half of float32; numpy has no such type."""
        with self.file.open("rb") as file:
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            start, stop = json.loads(file.read(length))[name]["data_offsets"]
            file.seek(LENGTH_BYTES + length + start)
            halves = np.frombuffer(file.read(stop - start), dtype="<u2")
        wide = halves.astype(np.uint32) << 16
        return wide.view(np.float32).reshape(self.shapes[name])
