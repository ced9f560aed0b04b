"""Run as a script: every native op on memory that ends where a page may not be touched.

The process dies of a segmentation fault where a kernel reads or writes one byte too far.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from dataclasses import replace

import torch
from torch import Tensor

from smile.model.kernels.activation import Activation
from smile.model.kernels.build import Places, load
from smile.model.kernels.grouped import BottleneckFields
from smile.model.kernels.linear import MULTIPLY, arguments, pack
from smile.model.kernels.matrices import matrix
from smile.model.kernels.native_grouped import NativeGrouped
from smile.model.kernels.rows import Members, Row, RowLayout
from smile.model.kernels.tape import AtOnce, Library

_PROTECTION_NONE = 0
_KEPT: list[mmap.mmap] = []


def at_the_end(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose last byte is the last that may be touched."""
    size = torch.Size(shape).numel() * dtype.itemsize
    pages = -(-size // mmap.PAGESIZE)
    memory = mmap.mmap(-1, (pages + 1) * mmap.PAGESIZE)
    _KEPT.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    guard = ctypes.c_void_p(start + pages * mmap.PAGESIZE)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(guard, ctypes.c_size_t(mmap.PAGESIZE), _PROTECTION_NONE) == 0
    view = memoryview(memory)[pages * mmap.PAGESIZE - size : pages * mmap.PAGESIZE]
    return torch.frombuffer(view, dtype=dtype).view(shape)


def run(inputs: int, rank: int, outputs: int, dtype: torch.dtype, kernels: NativeGrouped) -> None:
    shapes = {
        "down": (inputs, rank),
        "down.bias": (rank,),
        "up": (rank, outputs),
        "up.bias": (outputs,),
        "head": (inputs, outputs),
        "values": (48,),
    }
    for last in shapes:
        order = [*(name for name in shapes if name != last), last]
        tensors = {"indices": torch.full((48,), -1, dtype=torch.int32)}
        tensors |= {name: torch.ones(shapes[name], dtype=dtype) for name in order}
        layout = RowLayout.of(tensors)
        slab = at_the_end((1, layout.row_bytes), torch.uint8)
        layout.write(Row(slab, 0), tensors)
        for count in (1, 7, 16, 17, 33, 65):
            members = Members.of([Row(slab, 0)], [count], layout, torch.device("cpu"))
            x, y = at_the_end((count, inputs), dtype), at_the_end((count, outputs), dtype)
            fields = BottleneckFields("down", "down.bias", "up", "up.bias")
            kernels.linear(x, members, "head", "up.bias")
            kernels.add_low_rank(x, y, members, "down", "up")
            kernels.add_bottleneck(x, y, members, fields, Activation.GELU)
            kernels.add_vectors(y, members, "up.bias")
            kernels.add_sparse(x, y, members, "indices", "values")
        _KEPT.clear()


def multiply(inputs: int, outputs: int, dtype: torch.dtype, library: ctypes.CDLL) -> None:
    weight = at_the_end((outputs, inputs), dtype)
    linear = pack(library, weight, torch.zeros(outputs, dtype=dtype))
    packed = at_the_end(tuple(linear.packed.shape), dtype).copy_(linear.packed)
    linear = replace(linear, packed=packed, bias=at_the_end((outputs,), torch.float32))
    for count in (1, 7, 16, 17, 33, 65):
        x, y = at_the_end((count, inputs), dtype), at_the_end((count, outputs), dtype)
        words = arguments(matrix(x), linear, matrix(y), None, threads=1)
        library[MULTIPLY[dtype]]((ctypes.c_int64 * len(words))(*words))
    _KEPT.clear()


def main() -> None:
    torch.set_num_threads(1)
    library = load(Places()).handle
    assert library is not None
    for dtype in (torch.float32, torch.bfloat16):
        for widths in ((64, 32, 64), (16, 16, 16), (40, 24, 56), (5, 3, 7)):
            run(*widths, dtype, NativeGrouped(AtOnce(Library(library))))
        for inputs, outputs in ((64, 64), (32, 5), (30, 33), (1, 1), (1024, 8)):
            multiply(inputs, outputs, dtype, library)
    sys.stdout.write("inside\n")


if __name__ == "__main__":
    main()
