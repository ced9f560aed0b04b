"""Rows, layouts and members: where weights lie, and gathering them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smile.model.kernels.rows import Field, Members, Row, RowLayout

CPU = torch.device("cpu")


def _tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "matrix": torch.randn(3, 5, generator=generator).to(dtype),
        "indices": torch.randint(99, (7,), generator=generator).to(torch.int32),
        "vector": torch.randn(17, generator=generator).to(dtype),
    }


def test_fields_lie_in_order_at_aligned_offsets() -> None:
    layout = RowLayout.of(_tensors(0))
    assert layout.fields == {
        "matrix": Field(0, (3, 5), torch.float32),
        "indices": Field(64, (7,), torch.int32),
        "vector": Field(128, (17,), torch.float32),
    }
    assert layout.row_bytes == 256
    assert RowLayout.of({}).row_bytes == 0


def test_layouts_of_the_same_shapes_are_equal_and_hash_alike() -> None:
    layouts = {RowLayout.of(_tensors(0)), RowLayout.of(_tensors(1))}
    assert len(layouts) == 1
    assert RowLayout.of(_tensors(0)) != RowLayout.of(_tensors(0, torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_viewed_and_neighbours_stay(dtype: torch.dtype) -> None:
    tensors = _tensors(0, dtype)
    layout = RowLayout.of(tensors)
    slab = torch.full((3, layout.row_bytes + 64), 7, dtype=torch.uint8)
    row = Row(slab, 1)
    layout.write(row, tensors)
    for name, tensor in tensors.items():
        assert row.view(layout.fields[name]).equal(tensor)
    assert slab[0].eq(7).all()
    assert slab[2].eq(7).all()
    assert row.bytes[layout.row_bytes :].eq(7).all()
    assert row.address == slab[1].data_ptr() == row.bytes.data_ptr()


def test_other_tensors_than_the_layouts_are_refused() -> None:
    tensors = _tensors(0)
    layout = RowLayout.of(tensors)
    row = Row(torch.zeros(1, layout.row_bytes, dtype=torch.uint8), 0)
    for wrong in (
        {"matrix": tensors["matrix"]},
        tensors | {"matrix": tensors["matrix"].T},
        tensors | {"matrix": tensors["matrix"].double()},
    ):
        with pytest.raises(AssertionError):
            layout.write(row, wrong)


def test_rows_outside_their_slab_are_refused() -> None:
    slab = torch.zeros(2, 64, dtype=torch.uint8)
    for slot in (-1, 2):
        with pytest.raises(AssertionError, match="slot"):
            Row(slab, slot)
    with pytest.raises(AssertionError, match="64 bytes"):
        Row(slab, 0).view(Field(0, (17,), torch.float32))
    with pytest.raises(AssertionError):
        Row(torch.zeros(2, 65, dtype=torch.uint8), 0)
    with pytest.raises(AssertionError):
        Row(torch.zeros(2, 128, dtype=torch.uint8)[:, :64], 0)


@settings(deadline=None, max_examples=40)
@given(places=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=12))
def test_gather_stacks_members_in_order_from_any_slabs(places: list[tuple[int, int]]) -> None:
    layout = RowLayout.of(_tensors(0))
    slabs = [torch.zeros(5, layout.row_bytes, dtype=torch.uint8) for _ in range(4)]
    for number, slab in enumerate(slabs):
        for slot in range(5):
            layout.write(Row(slab, slot), _tensors(number * 5 + slot))
    rows = [Row(slabs[number], slot) for number, slot in places]
    members = Members.of(rows, [1] * len(rows), layout, CPU)
    for name in layout.fields:
        expected = torch.stack([_tensors(number * 5 + slot)[name] for number, slot in places])
        assert members.gather(name).equal(expected)


def test_a_single_members_tensor_is_not_copied() -> None:
    layout = RowLayout.of(_tensors(0))
    row = Row(torch.zeros(4, layout.row_bytes, dtype=torch.uint8), 2)
    members = Members.of([row], [3], layout, CPU)
    assert members.gather("vector").data_ptr() == row.address + layout.fields["vector"].offset


def test_segments() -> None:
    layout = RowLayout.of(_tensors(0))
    slab = torch.zeros(4, layout.row_bytes, dtype=torch.uint8)
    rows = [Row(slab, 2), Row(slab, 0), Row(slab, 3)]
    members = Members.of(rows, [2, 0, 3], layout, CPU)
    assert members.counts == (2, 0, 3)
    assert members.ends.tolist() == [2, 2, 5]
    assert members.ends.dtype is torch.int32
    assert members.owners.tolist() == [0, 0, 2, 2, 2]
    assert members.addresses.tolist() == [row.address for row in rows]


def test_members_need_rows_that_hold_the_layout() -> None:
    layout = RowLayout.of(_tensors(0))
    row = Row(torch.zeros(1, layout.row_bytes - 64, dtype=torch.uint8), 0)
    for rows, counts in (([], []), ([row], [1]), ([row], [1, 2]), ([row], [-1])):
        with pytest.raises(AssertionError):
            Members.of(rows, counts, layout, CPU)
