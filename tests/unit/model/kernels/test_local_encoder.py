"""A local encoder's kernels: native against torch, any width, alone as in any batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from smile.model.kernels import EAGER, kernels_for
from smile.model.kernels.activation import Activation
from smile.model.kernels.local_encoder import LocalKernels, TorchLocal
from smile.model.packing import PackedTokens, pack

CPU = torch.device("cpu")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}
DTYPES = (torch.float32, torch.bfloat16)


def native(dtype: torch.dtype) -> LocalKernels:
    kernels = kernels_for(CPU, dtype)
    if kernels.native is None:
        pytest.skip("no native kernels here")
    return kernels.local


def parts_of(width: int, dtype: torch.dtype, vocab: int = 40) -> tuple[Tensor, Tensor]:
    torch.manual_seed(width)
    return torch.randn(vocab, 3 * width).to(dtype), torch.randn(width)


def texts() -> PackedTokens:
    return pack([[1] * length for length in (1, 7, 2, 33)])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 16, 45, 256])
def test_sums_of_words(width: int, dtype: torch.dtype) -> None:
    parts, bias = parts_of(width, dtype)
    ngrams = torch.randint(0, 40, (29, 3))
    found = native(dtype).sum_words(ngrams, parts, bias, Activation.GELU)
    wanted = TorchLocal().sum_words(ngrams, parts, bias, Activation.GELU)
    assert found.dtype is wanted.dtype is dtype
    torch.testing.assert_close(found, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    for row in range(len(ngrams)):
        one = native(dtype).sum_words(ngrams[row : row + 1], parts, bias, Activation.GELU)
        assert torch.equal(one[0], found[row])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [1, 16, 45])
def test_means_of_texts(width: int, dtype: torch.dtype) -> None:
    packed = texts()
    x = torch.randn(packed.tokens, 8 + width).to(dtype)
    found, wanted = x.clone(), x.clone()
    native(dtype).mean_texts_(found[:, 8:], packed)
    EAGER.local.mean_texts_(wanted[:, 8:], packed)
    assert torch.equal(found[:, :8], x[:, :8])
    torch.testing.assert_close(found, wanted, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    for text, length in enumerate(packed.lengths):
        start = int(packed.offsets[text])
        alone = x[start : start + length, 8:].clone()
        native(dtype).mean_texts_(alone, pack([[1] * length]))
        assert torch.equal(alone, found[start : start + length, 8:])


def test_words_outside_the_table_are_refused() -> None:
    parts, bias = parts_of(16, torch.float32)
    for word in (-1, 40):
        with pytest.raises(IndexError):
            native(torch.float32).sum_words(
                torch.tensor([[1, word, 2]]), parts, bias, Activation.GELU
            )


def test_put_together_they_run_when_the_block_ends() -> None:
    kernels = kernels_for(CPU, torch.float32)
    if kernels.native is None:
        pytest.skip("no native kernels here")
    parts, bias = parts_of(16, torch.float32)
    packed, ngrams = texts(), torch.randint(0, 40, (43, 3))
    with kernels.together() as together:
        later = together.local.sum_words(ngrams, parts, bias, Activation.GELU)
        together.local.mean_texts_(later, packed)
    now = kernels.local.sum_words(ngrams, parts, bias, Activation.GELU)
    assert torch.equal(later, kernels.local.mean_texts_(now, packed))
