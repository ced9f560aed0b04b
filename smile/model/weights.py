"""A module's tensors as bytes: safetensors, checked as input from a stranger.

numpy only. `encode` gives the same bytes for the same tensors, so a module's digest names it.
`decode` reads the header itself and accepts exactly what the layout says: numbers are finite,
indices lie strictly ascending inside their matrix, masks mask no more than they may. Any other
flipped bit inside a tensor is the digest's to catch.

The file: 8 bytes of header length (little-endian), a JSON header of
`{name: {dtype, shape, data_offsets}}`, then the tensors without gaps.
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from safetensors.numpy import save

from smile.errors import DataCorrupted, InvalidArgument
from smile.limits import FULL_BYTES_MAX, KIB, MIB, MODULE_BYTES_MAX
from smile.model import layout
from smile.model.initial import NUMPY_DTYPES, StoredArray
from smile.model.specs import (
    BackboneShape,
    Choice,
    DType,
    ModuleSpec,
    PetKind,
    TensorSpec,
)

FORMAT = "smile.module.v1"
METADATA_KEY = "__metadata__"
METADATA = {"format": FORMAT}  # one key only: safetensors writes several in no fixed order
LENGTH_BYTES = 8
HEADER_BYTES_MAX = 1 * MIB
HEADERS_KEPT_MAX = 256
HEADER_KEPT_BYTES_MAX = 16 * KIB  # most have 1 to 4; a longer one is read each time
SHOWN_CHARS_MAX = 80
FLOAT16_EXPONENT = 0x7C00
STORED_DTYPES: dict[DType | Choice, str] = {
    DType.FLOAT16: "F16",
    DType.FLOAT32: "F32",
    Choice.INDICES: "I32",
    Choice.BITS: "U8",
}


def sha256_hex(data: bytes) -> str:
    """SHA-256 of bytes, 64 lowercase hex digits."""
    return hashlib.sha256(data).hexdigest()


def bytes_max(kind: PetKind) -> int:
    """How large a version of a kind may be."""
    return FULL_BYTES_MAX if kind is PetKind.FULL else MODULE_BYTES_MAX


def encode(tensors: Mapping[str, StoredArray], spec: ModuleSpec) -> bytes:
    """Tensors as the bytes of a stored module.

    Raises:
        InvalidArgument: a tensor is not of its stored type or not finite, or they take too many
            bytes. Names and shapes are `decode`'s to check, where the backbone is known.
    """
    for name, array in tensors.items():
        _check_array(name, array, layout.dtype_of(name, spec.dtype))
    data = save({name: np.ascontiguousarray(array) for name, array in tensors.items()}, METADATA)
    if len(data) > (limit := bytes_max(spec.pet.kind)):
        raise InvalidArgument(
            f"a module must have at most {limit} bytes, got {len(data)}",
            metadata={"limit": str(limit), "value": str(len(data))},
        )
    return data


def decode(data: bytes, spec: ModuleSpec, shape: BackboneShape) -> dict[str, StoredArray]:
    """The tensors of a stored module, in the layout's order; writable, of memory of their own.

    Raises:
        DataCorrupted: the bytes are anything but the layout's tensors, all as they must be.
        InvalidSpec: the spec does not fit the backbone.
    """
    sizes = layout.Sizes.of(spec)
    wanted = layout.tensors_of(sizes, shape)
    if len(data) > (limit := bytes_max(spec.pet.kind)):
        raise DataCorrupted(f"module has {len(data)} bytes, the limit is {limit}")
    header, body = _split(data)
    known = _spans if len(header) <= HEADER_KEPT_BYTES_MAX else _spans.__wrapped__
    spans = known(header, len(body), sizes, shape)
    if any(tensor.dtype is not spec.dtype for tensor in wanted.values()):
        return {name: _array(name, body, spans[name], tensor) for name, tensor in wanted.items()}
    return _numbers(body, spans, wanted, spec.dtype)


@dataclass(frozen=True, slots=True)
class _Span:
    """Where a tensor's bytes lie in the body: [start, stop)."""

    start: int
    stop: int


def _split(data: bytes) -> tuple[bytes, memoryview]:
    """(header, body)."""
    if len(data) < LENGTH_BYTES:
        raise DataCorrupted(f"module must have at least {LENGTH_BYTES} bytes, got {len(data)}")
    length = int.from_bytes(data[:LENGTH_BYTES], "little")
    limit = min(HEADER_BYTES_MAX, len(data) - LENGTH_BYTES)
    if length > limit:
        raise DataCorrupted(f"module header claims {length} bytes, at most {limit} are possible")
    end = LENGTH_BYTES + length
    return data[LENGTH_BYTES:end], memoryview(data)[end:]


@lru_cache(maxsize=HEADERS_KEPT_MAX)
def _spans(
    header: bytes, size: int, sizes: layout.Sizes, shape: BackboneShape
) -> Mapping[str, _Span]:
    """Where the layout's tensors lie in a body of `size` bytes. Good headers are kept: modules of
    one kind and size have the same, to the byte, where `encode` made them.
    """
    wanted, entries = layout.tensors_of(sizes, shape), _entries(header)
    if entries.keys() != wanted.keys():
        raise DataCorrupted(_names_differ(set(entries), set(wanted)))
    spans = {name: _span(name, entries[name], tensor) for name, tensor in wanted.items()}
    _check_cover(spans, size)
    return spans


def _entries(header: bytes) -> dict[str, object]:
    """The header's tensor entries, without the metadata (which must be ours)."""
    if not header.startswith(b"{"):
        raise DataCorrupted("module header must begin with '{'")
    try:
        parsed = json.loads(
            header.decode("utf-8"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant
        )
    except (ValueError, RecursionError) as error:
        raise DataCorrupted(f"module header is not JSON: {_shown(error)}") from error
    metadata = parsed.pop(METADATA_KEY, None)
    if metadata != METADATA:
        raise DataCorrupted(f"module metadata must be {METADATA}, got {_shown(metadata)}")
    return dict(parsed)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise DataCorrupted("module header repeats a key")
    return unique


def _no_constant(text: str) -> object:
    raise DataCorrupted(f"module header must hold integers, got {text}")


def _names_differ(got: set[str], wanted: set[str]) -> str:
    missing, extra = sorted(wanted - got), sorted(got - wanted)
    return (
        f"module must have exactly the {len(wanted)} tensors of its spec: {len(missing)} missing "
        f"{_shown(missing[:3])}, {len(extra)} unknown {_shown(extra[:3])}"
    )


def _span(name: str, entry: object, tensor: TensorSpec) -> _Span:
    """Checks one header entry against the layout."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise DataCorrupted(f"tensor '{name}' must have dtype, shape and data_offsets alone")
    dtype = STORED_DTYPES[tensor.dtype]
    if entry["dtype"] != dtype:
        raise DataCorrupted(f"tensor '{name}' must be {dtype}, got {_shown(entry['dtype'])}")
    if not _integers(entry["shape"]) or tuple(entry["shape"]) != tensor.shape:
        raise DataCorrupted(
            f"tensor '{name}' must have shape {list(tensor.shape)}, got {_shown(entry['shape'])}"
        )
    offsets = entry["data_offsets"]
    size = layout.elements(tensor) * layout.DTYPE_BYTES[tensor.dtype]
    if not _integers(offsets) or len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise DataCorrupted(
            f"tensor '{name}' must span {size} bytes, got offsets {_shown(offsets)}"
        )
    return _Span(offsets[0], offsets[1])


def _integers(value: object) -> bool:
    """A list of integers proper: no booleans, no floats."""
    return isinstance(value, list) and all(type(item) is int for item in value)


def _check_cover(spans: Mapping[str, _Span], size: int) -> None:
    """Tensors must lie end to end from 0 to `size`: no gap, no overlap, nothing outside."""
    end = 0
    for name, span in sorted(spans.items(), key=lambda item: item[1].start):
        if span.start != end:
            raise DataCorrupted(f"tensor '{name}' must begin at byte {end}, got {span.start}")
        end = span.stop
    if end != size:
        raise DataCorrupted(f"module tensors must take {end} bytes, got {size}")


def _numbers(
    body: memoryview,
    spans: Mapping[str, _Span],
    wanted: Mapping[str, TensorSpec],
    precision: DType,
) -> dict[str, StoredArray]:
    """Tensors of one precision alone, which are copied and checked all at once."""
    every = _copied(body, precision)
    size = every.itemsize
    arrays: dict[str, StoredArray] = {
        name: every[spans[name].start // size : spans[name].stop // size].reshape(tensor.shape)
        for name, tensor in wanted.items()
    }
    if not _finite(every):
        for name, array in arrays.items():
            _check_finite(name, array)
    return arrays


def _copied(part: memoryview, dtype: DType | Choice) -> StoredArray:
    """One tensor's bytes, or those of several, as numbers in this machine's byte order."""
    kept = np.dtype(NUMPY_DTYPES[dtype])
    flat: StoredArray = np.frombuffer(part, kept.newbyteorder("<")).astype(kept, copy=True)
    return flat


def _array(name: str, body: memoryview, span: _Span, tensor: TensorSpec) -> StoredArray:
    array = _copied(body[span.start : span.stop], tensor.dtype).reshape(tensor.shape)
    if tensor.dtype is Choice.INDICES:
        _check_indices(name, array, tensor.entries)
    elif tensor.dtype is Choice.BITS:
        _check_bits(name, array, tensor)
    else:
        _check_finite(name, array)
    return array


def _check_finite(name: str, array: StoredArray) -> None:
    if not _finite(array):
        bad = int(array.size - np.isfinite(array).sum())
        raise DataCorrupted(f"tensor '{name}' has {bad} numbers that are not finite")


def _finite(array: StoredArray) -> bool:
    """Whether all numbers are. Of half precision by their exponents' bits, which are all set in
    those that are not: numpy's own way takes ten times as long.
    """
    if array.dtype == np.float16:
        exponents = np.bitwise_and(array.view(np.uint16), FLOAT16_EXPONENT)
        return int(exponents.max(initial=0)) < FLOAT16_EXPONENT
    return bool(np.isfinite(array).all())


def _check_indices(name: str, array: StoredArray, entries: int) -> None:
    """Strictly ascending within [0, entries). There is at least one."""
    first, last = int(array[0]), int(array[-1])
    if first < 0 or last >= entries:
        raise DataCorrupted(
            f"tensor '{name}' must lie between 0 and {entries - 1}, got {first} to {last}"
        )
    if not (array[1:] > array[:-1]).all():
        raise DataCorrupted(f"tensor '{name}' must be strictly ascending")


def _check_bits(name: str, array: StoredArray, tensor: TensorSpec) -> None:
    bits = np.unpackbits(array.astype(np.uint8, copy=False))
    if bits[tensor.entries :].any():
        raise DataCorrupted(f"tensor '{name}' has bits beyond its {tensor.entries} entries")
    chosen = int(np.count_nonzero(bits))
    if chosen > tensor.chosen_max:
        raise DataCorrupted(
            f"tensor '{name}' must mask at most {tensor.chosen_max} entries, got {chosen}"
        )


def _check_array(name: str, array: StoredArray, stored: DType | Choice) -> None:
    dtype = np.dtype(NUMPY_DTYPES[stored])
    if array.dtype != dtype:
        raise InvalidArgument(f"tensor '{name}' must be {dtype}, got {array.dtype}")
    if not _finite(array):
        raise InvalidArgument(f"tensor '{name}' has numbers that are not finite")


def _shown(value: object) -> str:
    """A stranger's value, short and printable."""
    text = ascii(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "..."
