"""The dense kernels in C++ (dense.cpp, attention.cpp), for inference on CPUs."""

from __future__ import annotations

import ctypes
from ctypes import c_float, c_int, c_int64, c_void_p

import torch
from torch import Tensor

from smile.model.kernels.dense import Activation, EmbeddingTables, NormWeights
from smile.model.packing import PackedTokens

SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_ACTIVATIONS = {  # as activations.h numbers them
    Activation.GELU: 0,
    Activation.GELU_TANH: 1,
    Activation.RELU: 2,
    Activation.SILU: 3,
}
_MATRIX = (c_void_p, c_int64)
_NORM = (c_void_p, c_void_p, c_float)
_SIZES = (c_int64, c_int64)
_ARGUMENTS = {
    "add_norm": (*_MATRIX * 3, *_NORM, *_SIZES, c_int),
    "embed": (c_void_p, c_void_p, c_int64, *(c_void_p,) * 4, *_NORM, *_SIZES, c_int),
    "activate": (*_MATRIX, *_SIZES, c_int, c_int),
    "pool_mean": (*_MATRIX, c_void_p, c_void_p, *_SIZES, c_int),
    "attend": (*_MATRIX * 2, c_void_p, c_int64, *_SIZES, c_int),
}


class NativeDense:
    """The kernels of one library. Norm weights must be float32. Threads may share it.

    Raises:
        IndexError: from `embed`, where a token or its position is outside its table.
    """

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {
            (name, dtype): _function(library, f"smile_{name}_{suffix}", arguments)
            for name, arguments in _ARGUMENTS.items()
            for dtype, suffix in SUFFIXES.items()
        }

    def embed(self, packed: PackedTokens, tables: EmbeddingTables) -> Tensor:
        parts = (tables.word, tables.position, tables.segment)
        assert all(part.is_contiguous() and part.dtype == tables.word.dtype for part in parts)
        assert packed.positions.is_contiguous() and packed.ids.is_contiguous()
        _check_rows(packed.ids, tables.word)
        _check_rows(packed.positions, tables.position[tables.position_offset :])
        out = tables.word.new_empty(packed.tokens, tables.word.shape[1])
        self._functions["embed", out.dtype](
            packed.ids.data_ptr(),
            packed.positions.data_ptr(),
            tables.position_offset,
            *(part.data_ptr() for part in parts),
            out.data_ptr(),
            *_norm(tables.norm),
            *out.shape,
            torch.get_num_threads(),
        )
        return out

    def attend(self, qkv: Tensor, packed: PackedTokens, heads: int) -> Tensor:
        tokens, width = qkv.shape
        assert tokens == packed.tokens and width % (3 * heads) == 0, f"{qkv.shape}, {heads} heads"
        out = qkv.new_empty(tokens, width // 3)
        self._functions["attend", qkv.dtype](
            *_matrix(qkv),
            *_matrix(out),
            packed.offsets.data_ptr(),
            len(packed.lengths),
            heads,
            width // (3 * heads),
            torch.get_num_threads(),
        )
        return out

    def add_norm(self, y: Tensor, residual: Tensor, norm: NormWeights) -> Tensor:
        assert y.shape == residual.shape and y.dtype == residual.dtype
        out = y.new_empty(y.shape)
        self._functions["add_norm", y.dtype](
            *_matrix(y),
            *_matrix(residual),
            *_matrix(out),
            *_norm(norm),
            *y.shape,
            torch.get_num_threads(),
        )
        return out

    def activate_(self, y: Tensor, activation: Activation) -> Tensor:
        kind = _ACTIVATIONS[activation]
        self._functions["activate", y.dtype](*_matrix(y), *y.shape, kind, torch.get_num_threads())
        return y

    def pool_mean(self, states: Tensor, packed: PackedTokens) -> Tensor:
        texts, width = len(packed.lengths), states.shape[1]
        assert states.shape[0] == packed.tokens
        out = states.new_empty(texts, width, dtype=torch.float32)
        self._functions["pool_mean", states.dtype](
            *_matrix(states),
            packed.offsets.data_ptr(),
            out.data_ptr(),
            texts,
            width,
            torch.get_num_threads(),
        )
        return out


def _function(
    library: ctypes.CDLL, name: str, arguments: tuple[type, ...]
) -> ctypes._NamedFuncPointer:
    found = library[name]  # not as an attribute: those are shared, and so are their types
    found.argtypes = arguments
    found.restype = None
    return found


def _check_rows(rows: Tensor, table: Tensor) -> None:
    least, most = (int(bound) for bound in torch.aminmax(rows))
    if least < 0 or most >= table.shape[0]:
        raise IndexError(f"rows {least} to {most} of a table of {table.shape[0]}")


def _matrix(x: Tensor) -> tuple[int, int]:
    """Address and row stride; elements of a row lie side by side."""
    assert x.stride(1) == 1 or x.shape[1] == 1, f"strides {x.stride()}"
    return x.data_ptr(), x.stride(0)


def _norm(norm: NormWeights) -> tuple[int, int, float]:
    weight, bias = norm.weight, norm.bias
    assert weight.dtype == bias.dtype == torch.float32, f"{weight.dtype}, {bias.dtype}"
    assert weight.is_contiguous() and bias.is_contiguous()
    return weight.data_ptr(), bias.data_ptr(), norm.epsilon
