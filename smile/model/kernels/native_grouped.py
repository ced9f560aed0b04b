"""The task ops in C++ (grouped.cpp), for CPUs. Everything a pointer needs is checked here."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from smile.model.kernels.dense import Activation
from smile.model.kernels.grouped import BottleneckFields
from smile.model.kernels.rows import Members

SPARSE_WIDTH_MAX = 1 << 16  # of an index's half
_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_ACTIVATIONS = {
    Activation.GELU: 0,
    Activation.GELU_TANH: 1,
    Activation.RELU: 2,
    Activation.SILU: 3,
}
_ABSENT = -1  # no bias, no activation


class _Call(ctypes.Structure):
    """`SmileGroupedCall` of grouped.cpp."""

    _fields_ = (
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("addresses", ctypes.c_void_p),
        ("ends", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("y_stride", ctypes.c_int64),
        ("members", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("rank", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("rows_type", ctypes.c_int32),
        ("weights_type", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    )


class NativeGrouped:
    """The task ops by a library that `build.load` found. Threads may share it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        call, number = ctypes.POINTER(_Call), ctypes.c_int64
        offsets = ctypes.POINTER(ctypes.c_int64)
        self._library = library
        for function, arguments in (
            (library.smile_grouped_linear, (call, number, number)),
            (library.smile_grouped_through, (call, offsets, ctypes.c_int32)),
            (library.smile_grouped_vectors, (call, number)),
            (library.smile_grouped_sparse, (call, number, number, number)),
        ):
            function.argtypes = arguments
            function.restype = None

    def linear(self, x: Tensor, members: Members, weight: str, bias: str | None) -> Tensor:
        outputs = members.layout.fields[weight].shape[-1]
        y = x.new_empty((x.shape[0], outputs))
        fields = _Offsets(members)
        matrix = fields.take(weight, (x.shape[1], outputs))
        shift = _ABSENT if bias is None else fields.take(bias, (outputs,))
        self._library.smile_grouped_linear(_call(x, y, members, fields), matrix, shift)
        return y

    def add_low_rank(self, x: Tensor, y: Tensor, members: Members, a: str, b: str) -> None:
        fields = _Offsets(members)
        fields.rank = members.layout.fields[a].shape[-1]
        down = fields.take(a, (x.shape[1], fields.rank))
        up = fields.take(b, (fields.rank, y.shape[1]))
        offsets = (ctypes.c_int64 * 4)(down, _ABSENT, up, _ABSENT)
        call = _call(x, y, members, fields)
        self._library.smile_grouped_through(call, offsets, _ABSENT)

    def add_bottleneck(
        self,
        x: Tensor,
        y: Tensor,
        members: Members,
        fields: BottleneckFields,
        activation: Activation,
    ) -> None:
        found = _Offsets(members)
        found.rank = members.layout.fields[fields.down_weight].shape[-1]
        offsets = (ctypes.c_int64 * 4)(
            found.take(fields.down_weight, (x.shape[1], found.rank)),
            found.take(fields.down_bias, (found.rank,)),
            found.take(fields.up_weight, (found.rank, y.shape[1])),
            found.take(fields.up_bias, (y.shape[1],)),
        )
        call = _call(x, y, members, found)
        self._library.smile_grouped_through(call, offsets, _ACTIVATIONS[activation])

    def add_vectors(self, y: Tensor, members: Members, vector: str) -> None:
        fields = _Offsets(members)
        shift = fields.take(vector, (y.shape[1],))
        self._library.smile_grouped_vectors(_call(y, y, members, fields), shift)

    def add_sparse(self, x: Tensor, y: Tensor, members: Members, indices: str, values: str) -> None:
        assert 0 < x.shape[1] <= SPARSE_WIDTH_MAX, f"{x.shape[1]} inputs"
        assert 0 < y.shape[1] <= SPARSE_WIDTH_MAX, f"{y.shape[1]} outputs"
        index = members.layout.fields[indices]
        assert index.dtype is torch.int32 and len(index.shape) == 1, index
        fields = _Offsets(members)
        value = fields.take(values, index.shape)
        call = _call(x, y, members, fields)
        self._library.smile_grouped_sparse(call, index.offset, value, index.size)


class _Offsets:
    """Offsets of the fields of one call, which are all of one float type."""

    def __init__(self, members: Members) -> None:
        self.rank = 0
        self.dtype: torch.dtype | None = None
        self._fields = members.layout.fields

    def take(self, name: str, shape: tuple[int, ...]) -> int:
        one = self._fields[name]
        assert one.shape == shape, f"{name} is {list(one.shape)}, not {list(shape)}"
        assert one.dtype in _TYPES, f"{name} is {one.dtype}"
        assert self.dtype in (None, one.dtype), f"{name} is {one.dtype}, others {self.dtype}"
        self.dtype = one.dtype
        return one.offset


def _call(x: Tensor, y: Tensor, members: Members, fields: _Offsets) -> _Call:
    """What every entry point takes; x and y are checked to be what it may read and write."""
    rows = members.owners.shape[0]
    for tensor in (x, y):
        assert tensor.device.type == "cpu" and tensor.dim() == 2, (tensor.device, tensor.shape)
        assert tensor.shape[0] == rows, f"{tensor.shape[0]} rows, of members {rows}"
        assert tensor.dtype in _TYPES and tensor.dtype is x.dtype, (x.dtype, y.dtype)
        assert tensor.shape[1] <= 1 or tensor.stride(1) == 1, "elements of a row lie together"
        assert rows <= 1 or tensor.stride(0) >= tensor.shape[1], "rows do not overlap"
    assert fields.dtype is not None
    return _Call(
        x=x.data_ptr(),
        y=y.data_ptr(),
        addresses=members.addresses.data_ptr(),
        ends=members.ends.data_ptr(),
        x_stride=x.stride(0),
        y_stride=y.stride(0),
        members=members.addresses.shape[0],
        inputs=x.shape[1],
        rank=fields.rank,
        outputs=y.shape[1],
        rows_type=_TYPES[x.dtype],
        weights_type=_TYPES[fields.dtype],
        threads=torch.get_num_threads(),
    )
