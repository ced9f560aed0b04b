"""Dense layers as the native kernels want them (linear.cpp): weights are packed once, at load."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.kernels.activation import NUMBERS, Activation
from smile.model.kernels.matrices import Matrix

PACK = {torch.float32: "smile_pack_float32", torch.bfloat16: "smile_pack_bfloat16"}
MULTIPLY = {torch.float32: "smile_linear_float32", torch.bfloat16: "smile_linear_bfloat16"}
_PANEL = 32  # outputs, and inputs: what packed weights are filled up to


@dataclass(frozen=True, slots=True)
class Linear:
    """y = x W^T + bias.

    Attributes:
        packed: W as the kernels that packed it want it, of the type of x and y.
        bias: [outputs] float32.
    """

    packed: Tensor
    bias: Tensor
    inputs: int
    outputs: int


def pack(library: ctypes.CDLL, weight: Tensor, bias: Tensor | None = None) -> Linear:
    """A layer of `library`'s products from `weight` [outputs, inputs] and `bias` [outputs]."""
    outputs, inputs = weight.shape
    weight = weight.detach().contiguous()
    packed = weight.new_empty(_filled(outputs) * _filled(inputs))
    bias = weight.new_zeros(outputs) if bias is None else bias.detach()
    assert bias.shape == (outputs,), f"{bias.shape} of {weight.shape}"
    words = (weight.data_ptr(), outputs, inputs, packed.data_ptr())
    library[PACK[weight.dtype]]((ctypes.c_int64 * len(words))(*words))
    return Linear(packed, bias.to(torch.float32).contiguous(), inputs, outputs)


def arguments(
    x: Matrix, linear: Linear, y: Matrix, activation: Activation | None, threads: int
) -> tuple[int, ...]:
    """Of the entry of `MULTIPLY`: y [rows, outputs] = activation(x [rows, inputs] W^T + b).

    All of them must live until the entry was called.
    """
    x_address, x_stride, rows, inputs, dtype = x
    y_address, y_stride, y_rows, outputs, y_dtype = y
    packed = linear.packed
    assert dtype is y_dtype is packed.dtype, f"{dtype}, {y_dtype}, {packed.dtype}"
    assert inputs == linear.inputs and rows == y_rows, f"x {x} to y {y} of {linear.inputs} inputs"
    assert outputs == linear.outputs, f"y {y} of {linear.outputs} outputs"
    return (
        x_address,
        x_stride,
        packed.data_ptr(),
        linear.bias.data_ptr(),
        y_address,
        y_stride,
        rows,
        inputs,
        outputs,
        NUMBERS[activation],
        threads,
    )


def _filled(count: int) -> int:
    return -(-count // _PANEL) * _PANEL
