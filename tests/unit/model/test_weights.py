"""Stored modules as hostile input: `decode` gives the layout's tensors or DataCorrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from smile.errors import DataCorrupted, InvalidArgument, InvalidSpec
from smile.limits import MODULE_BYTES_MAX
from smile.model.initial import StoredArray, initial_tensors, packed_bits
from smile.model.layout import tensors as layout_tensors
from smile.model.specs import (
    BackboneShape,
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Projection,
    Task,
)
from smile.model.weights import METADATA, _finite, decode, encode, sha256_hex

SHAPE = BackboneShape(
    layers=2, hidden=8, intermediate=12, heads=2, tokens_max=16, parameters=1, bytes=4
)
HEAD = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("no", "yes"))
SPEC = ModuleSpec("toy", "0" * 64, PetSpec(PetKind.PFEIFFER, 1, rank=2), HEAD)
SPECS = [
    SPEC,
    replace(SPEC, pet=PetSpec(PetKind.HOULSBY, 0, rank=3), dtype=DType.FLOAT32),
    replace(SPEC, pet=PetSpec(PetKind.LORA, 0, 2, 4.0, (Projection.QUERY, Projection.OUTPUT))),
    replace(SPEC, pet=PetSpec(PetKind.BITFIT, 0)),
    replace(SPEC, pet=PetSpec(PetKind.DIFF_PRUNING, 0, density=0.05), dtype=DType.FLOAT32),
    replace(SPEC, pet=PetSpec(PetKind.MASK_BERT, 0, density=0.05)),
    replace(SPEC, pet=PetSpec(PetKind.NONE, 0)),
    replace(SPEC, pet=PetSpec(PetKind.NONE, 0), head=HeadSpec(Task.EMBEDDING)),
]
GOOD = encode(initial_tensors(SPEC, SHAPE, seed=1), SPEC)
HEADER = int.from_bytes(GOOD[:8], "little")


def corrupted(data: bytes, match: str) -> None:
    with pytest.raises(DataCorrupted, match=match):
        decode(data, SPEC, SHAPE)


def file(header: object, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def parsed() -> tuple[dict[str, dict[str, object]], bytes]:
    return json.loads(GOOD[8 : 8 + HEADER]), GOOD[8 + HEADER :]


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.pet.kind}-{spec.dtype}")
def test_what_is_encoded_is_decoded_bit_for_bit(spec: ModuleSpec) -> None:
    tensors = initial_tensors(spec, SHAPE, seed=3)
    decoded = decode(encode(tensors, spec), spec, SHAPE)
    assert list(decoded) == list(layout_tensors(spec, SHAPE))
    for name, array in tensors.items():
        assert decoded[name].dtype == array.dtype
        assert np.array_equal(decoded[name], array)
        assert decoded[name].flags.writeable


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec.pet.kind}-{spec.dtype}")
def test_safetensors_itself_reads_the_same_tensors(spec: ModuleSpec) -> None:
    tensors = initial_tensors(spec, SHAPE, seed=3)
    stored = safetensors.numpy.load(encode(tensors, spec))
    assert stored.keys() == tensors.keys()
    assert all(np.array_equal(stored[name], tensors[name]) for name in tensors)


def test_the_same_tensors_give_the_same_bytes_in_any_order() -> None:
    tensors = initial_tensors(SPEC, SHAPE, seed=1)
    backwards = dict(reversed(tensors.items()))
    strided = {name: np.asfortranarray(array) for name, array in tensors.items()}
    assert encode(tensors, SPEC) == encode(backwards, SPEC) == encode(strided, SPEC) == GOOD


def test_the_digest_is_sha256() -> None:
    assert sha256_hex(b"abc").startswith("ba7816bf8f01cfea414140de5dae2223")
    assert sha256_hex(GOOD) != sha256_hex(GOOD[:-1] + bytes([GOOD[-1] ^ 1]))


def test_no_flipped_header_bit_escapes() -> None:
    """DataCorrupted, or (white space, equivalent JSON) the very same tensors."""
    good = decode(GOOD, SPEC, SHAPE)
    for bit in range(8 * (8 + HEADER)):
        flipped = bytearray(GOOD)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            tensors = decode(bytes(flipped), SPEC, SHAPE)
        except DataCorrupted:
            continue
        for name, array in good.items():
            assert tensors[name].tobytes() == array.tobytes()


def test_no_truncation_escapes() -> None:
    for length in range(len(GOOD)):
        corrupted(GOOD[:length], "module")


@given(st.binary(max_size=300))
def test_no_random_bytes_escape(data: bytes) -> None:
    corrupted(data, "module")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
NAMES = sorted(layout_tensors(SPEC, SHAPE))


@settings(max_examples=300)
@given(st.sampled_from(NAMES), st.sampled_from(["dtype", "shape", "data_offsets", "x"]), JSON)
def test_no_header_value_escapes(name: str, field: str, value: object) -> None:
    header, body = parsed()
    if header[name].get(field) == value:
        return
    header[name][field] = value
    corrupted(file(header, body), "tensor|header")


@given(JSON)
def test_no_header_shape_escapes(value: object) -> None:
    corrupted(file(value, b""), "module")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(bad: float) -> None:
    tensors = initial_tensors(SPEC, SHAPE, seed=1)
    tensors["head.weight"][1, 2] = bad
    with pytest.raises(InvalidArgument, match=r"'head\.weight' has numbers that are not finite"):
        encode(tensors, SPEC)
    corrupted(saved(tensors), r"'head\.weight' has 1 numbers that are not finite")


def saved(tensors: dict[str, StoredArray]) -> bytes:
    return safetensors.numpy.save(tensors, METADATA)


def test_missing_extra_and_path_like_tensors() -> None:
    tensors = initial_tensors(SPEC, SHAPE, seed=1)
    bias = tensors.pop("head.bias")
    corrupted(saved(tensors), r"1 missing \['head.bias'\], 0 unknown")
    for name in ("../../etc/passwd", "layers.9.query.bias", "", "head.bias\0", "é" * 500):
        corrupted(saved(tensors | {"head.bias": bias, name: bias}), "0 missing .*, 1 unknown")
        corrupted(saved(tensors | {name: bias}), "1 missing .*, 1 unknown")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8, np.bool_])
def test_wrong_dtype(dtype: type[np.generic]) -> None:
    tensors = initial_tensors(SPEC, SHAPE, seed=1)
    wrong = tensors | {"head.bias": np.zeros(2, dtype)}
    corrupted(saved(wrong), r"'head\.bias' must be F16, got")
    with pytest.raises(InvalidArgument, match=r"'head\.bias' must be float16, got"):
        encode(wrong, SPEC)


@pytest.mark.parametrize("size", [(3,), (1, 2), (2, 1), (0,), ()])
def test_wrong_shape(size: tuple[int, ...]) -> None:
    tensors = initial_tensors(SPEC, SHAPE, seed=1)
    wrong = tensors | {"head.bias": np.zeros(size, np.float16)}
    corrupted(saved(wrong), r"'head\.bias' must have shape \[2\]")


def test_shapes_with_booleans_or_floats_are_not_integers() -> None:
    header, body = parsed()
    header["head.bias"]["shape"] = [2.0]
    corrupted(file(header, body), r"'head\.bias' must have shape")
    header["head.bias"]["shape"] = [2]
    header["head.bias"]["data_offsets"] = [False, 4]
    corrupted(file(header, body), r"'head\.bias' must span 4 bytes")


def test_overlap_gap_and_tail() -> None:
    header, body = parsed()
    ends = {name: entry["data_offsets"] for name, entry in header.items() if "dtype" in entry}
    down, up = ("layers.1.feedforward.adapter.down.bias", "head.bias")
    header[up]["data_offsets"] = ends[down]
    header[down]["data_offsets"] = ends[down]
    corrupted(file(header, body), "must begin at byte")
    corrupted(GOOD + b"\0", r"must take \d+ bytes, got")
    header, body = parsed()
    for entry in header.values():
        if "data_offsets" in entry:
            start, stop = entry["data_offsets"]  # type: ignore[misc]
            entry["data_offsets"] = [start + 8, stop + 8]  # type: ignore[has-type]
    corrupted(file(header, b"\0" * 8 + body), "must begin at byte 0, got 8")
    for entry in header.values():
        if "data_offsets" in entry:
            start, stop = entry["data_offsets"]  # type: ignore[misc]
            entry["data_offsets"] = [start - 16, stop - 16]  # type: ignore[has-type]
    corrupted(file(header, body), "must begin at byte 0, got -8")


def test_repeated_keys() -> None:
    text = GOOD[8 : 8 + HEADER].rstrip()
    twice = text[:-1] + b',"head.bias":{"dtype":"F16","shape":[2],"data_offsets":[0,4]}}'
    corrupted(file(twice, GOOD[8 + HEADER :]), "repeats a key")
    inner = text.replace(b'"dtype":"F16"', b'"dtype":"F16","dtype":"F16"', 1)
    corrupted(file(inner, GOOD[8 + HEADER :]), "repeats a key")


@pytest.mark.parametrize(
    "header",
    [b"[" * 100_000, b'{"a":' * 100_000, b'{"a":1' + b"0" * 10_000 + b"}", b'{"a":NaN}', b"\xff{}"],
    ids=["deep list", "deep object", "huge integer", "NaN", "not UTF-8"],
)
def test_headers_that_hurt_parsers(header: bytes) -> None:
    corrupted(file(header, b""), "header")


def test_metadata_must_be_ours() -> None:
    tensors = initial_tensors(SPEC, SHAPE, seed=1)
    corrupted(safetensors.numpy.save(tensors), "metadata must be")
    corrupted(safetensors.numpy.save(tensors, {"format": "pt"}), "metadata must be")
    corrupted(safetensors.numpy.save(tensors, METADATA | {"more": "x"}), "metadata must be")


def test_size_limits_name_limit_and_value() -> None:
    corrupted((1 << 63).to_bytes(8, "little") + b"{}", f"claims {1 << 63} bytes, at most 2")
    corrupted(bytes(MODULE_BYTES_MAX + 1), f"{MODULE_BYTES_MAX + 1} bytes, the limit is")
    large = {"head.bias": np.zeros(MODULE_BYTES_MAX // 2, np.float16)}
    with pytest.raises(InvalidArgument, match=f"at most {MODULE_BYTES_MAX} bytes"):
        encode(large, SPEC)


def test_a_spec_that_does_not_fit_is_the_callers_fault() -> None:
    with pytest.raises(InvalidSpec, match="below the backbone's 2 layers"):
        decode(GOOD, replace(SPEC, pet=PetSpec(PetKind.PFEIFFER, 2, rank=2)), SHAPE)


def test_another_specs_module_is_refused() -> None:
    for other in SPECS[1:]:
        with pytest.raises(DataCorrupted):
            decode(GOOD, other, SHAPE)


SPARSE = ModuleSpec(
    "toy", "0" * 64, PetSpec(PetKind.DIFF_PRUNING, 1, density=0.05), HEAD, DType.FLOAT32
)
MASKED = replace(SPARSE, pet=PetSpec(PetKind.MASK_BERT, 1, density=0.05))
INDICES = "layers.1.intermediate.delta.indices"  # 4 of 96
BITS = "layers.1.query.mask.bits"  # 3 of 64


def with_tensor(spec: ModuleSpec, name: str, array: StoredArray) -> bytes:
    tensors = initial_tensors(spec, SHAPE, seed=1)
    assert name in tensors
    return saved(tensors | {name: array})


@pytest.mark.parametrize(
    ("indices", "match"),
    [
        ([0, 1, 2, 96], "between 0 and 95, got 0 to 96"),
        ([-1, 1, 2, 3], "between 0 and 95, got -1 to 3"),
        ([-(2**31), 1, 2, 2**31 - 1], "between 0 and 95"),
        ([0, 1, 1, 3], "strictly ascending"),
        ([0, 2, 1, 3], "strictly ascending"),
        ([0, 99, -5, 3], "strictly ascending"),
        ([5, 4, 3, 2], "strictly ascending"),
        ([1, 2, 3], r"shape \[4\], got \[3\]"),
    ],
)
def test_indices_that_name_no_entries_are_refused(indices: list[int], match: str) -> None:
    data = with_tensor(SPARSE, INDICES, np.array(indices, dtype=np.int32))
    with pytest.raises(DataCorrupted, match=match):
        decode(data, SPARSE, SHAPE)


def test_indices_at_both_ends_are_accepted() -> None:
    indices = np.array([0, 1, 94, 95], dtype=np.int32)
    found = decode(with_tensor(SPARSE, INDICES, indices), SPARSE, SHAPE)
    assert np.array_equal(found[INDICES], indices)


@settings(max_examples=200)
@given(st.lists(st.integers(-(2**31), 2**31 - 1) | st.integers(-2, 97), min_size=4, max_size=4))
def test_no_indices_outside_the_matrix_escape(indices: list[int]) -> None:
    data = with_tensor(SPARSE, INDICES, np.array(indices, dtype=np.int32))
    good = sorted(set(indices)) == indices and indices[0] >= 0 and indices[-1] < 96
    try:
        found = decode(data, SPARSE, SHAPE)[INDICES].tolist()
    except DataCorrupted:
        assert not good
    else:
        assert good and found == indices


def test_integers_of_another_type_are_refused() -> None:
    wide: Any = np.array([0, 1, 2, 3], dtype=np.int64)
    tensors = initial_tensors(SPARSE, SHAPE, seed=1)
    with pytest.raises(DataCorrupted, match=r"must be I32, got 'I64'"):
        decode(saved(tensors | {INDICES: wide}), SPARSE, SHAPE)
    with pytest.raises(InvalidArgument, match=r"indices' must be int32, got int64"):
        encode(tensors | {INDICES: wide}, SPARSE)
    with pytest.raises(InvalidArgument, match=r"bits' must be uint8, got float32"):
        masks = initial_tensors(MASKED, SHAPE, seed=1)
        encode(masks | {BITS: masks[BITS].astype(np.float32)}, MASKED)


def test_a_mask_of_more_than_it_may_mask_is_refused() -> None:
    three = packed_bits(np.array([0, 9, 63]), 64)
    assert np.array_equal(decode(with_tensor(MASKED, BITS, three), MASKED, SHAPE)[BITS], three)
    four = packed_bits(np.array([0, 9, 10, 63]), 64)
    with pytest.raises(DataCorrupted, match="at most 3 entries, got 4"):
        decode(with_tensor(MASKED, BITS, four), MASKED, SHAPE)


def test_bits_beyond_a_mask_are_refused() -> None:
    odd = replace(SHAPE, hidden=9, intermediate=15)  # 81 entries in 11 bytes
    tensors = initial_tensors(MASKED, odd, seed=1)
    last = packed_bits(np.array([80]), 81)
    assert np.array_equal(decode(saved(tensors | {BITS: last}), MASKED, odd)[BITS], last)
    beyond = packed_bits(np.array([81]), 88)
    with pytest.raises(DataCorrupted, match="beyond its 81 entries"):
        decode(saved(tensors | {BITS: beyond}), MASKED, odd)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_number_that_is_not_finite_is_seen(dtype: type[np.floating[Any]]) -> None:
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).astype(dtype)
    for number in range(0, len(every), 7):
        one = every[number : number + 1]
        assert _finite(one) == np.isfinite(one).all()
