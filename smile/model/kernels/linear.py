"""Dense layers as the native kernels want them (linear.cpp): weights are packed once, at load."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from smile.model.kernels.activation import NUMBERS, Activation

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
    x: Tensor, linear: Linear, y: Tensor, activation: Activation | None, threads: int
) -> tuple[int, ...]:
    """Of the entry `MULTIPLY[x.dtype]`: y [rows, outputs] = activation(x [rows, inputs] W^T + b).

    Rows may have a stride. The tensors must live until the entry was called.
    """
    assert x.dtype == y.dtype == linear.packed.dtype, f"{x.dtype}, {y.dtype}, {linear.packed.dtype}"
    assert x.shape == (y.shape[0], linear.inputs), f"x {x.shape} of {linear.inputs} inputs"
    assert y.shape[1] == linear.outputs, f"y {y.shape} of {linear.outputs} outputs"
    return (
        *_rows(x),
        linear.packed.data_ptr(),
        linear.bias.data_ptr(),
        *_rows(y),
        x.shape[0],
        linear.inputs,
        linear.outputs,
        NUMBERS[activation],
        threads,
    )


def _filled(count: int) -> int:
    return -(-count // _PANEL) * _PANEL


def _rows(x: Tensor) -> tuple[int, int]:
    """Address and row stride; elements of a row lie side by side."""
    assert x.stride(1) == 1 or x.shape[1] == 1, f"strides {x.stride()}"
    return x.data_ptr(), x.stride(0)
