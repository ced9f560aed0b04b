"""Found tensors to a module as it would be stored: precision chosen, layout checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from smile.formats import ExportFormat
from smile.model import layout
from smile.model.initial import NUMPY_DTYPES, StoredArray
from smile.model.port.values import ImportedModule, Target, malformed, unsupported
from smile.model.specs import Choice, DType, HeadSpec, ModuleSpec, PetSpec


def assembled(
    pet: PetSpec,
    head: HeadSpec,
    found: Mapping[str, StoredArray],
    target: Target,
    *,
    source: ExportFormat,
    remarks: Iterable[str] = (),
) -> ImportedModule:
    """The module of these tensors, by the layout's names; numbers in any precision.

    Raises:
        InvalidArgument: a number is not finite or too large for the precision asked for, or a
            tensor has another shape than the backbone's.
        InvalidSpec: the spec does not fit the backbone.
    """
    numbers = {
        name: array for name, array in found.items() if array.dtype in (np.float16, np.float32)
    }
    _check_finite(numbers)
    told = list(remarks)
    dtype = target.precision or _lossless(numbers)
    spec = ModuleSpec(target.backbone, target.digest, pet.placed(target.shape), head, dtype)
    expected = layout.tensors(spec, target.shape)
    if odd := sorted(expected.keys() ^ found.keys()):
        raise malformed(f"tensors do not make a module: {odd[0]} is missing or extra")
    stored: dict[str, StoredArray] = {}
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape:
            raise unsupported(
                f"{name} must be {list(tensor.shape)} on backbone '{target.backbone}', got "
                f"{list(found[name].shape)}; nothing was imported"
            )
        stored[name] = found[name].astype(NUMPY_DTYPES[tensor.dtype], copy=True)
        if not isinstance(tensor.dtype, Choice):
            told += _rounding(name, found[name], stored[name])
    return ImportedModule(spec, stored, source, tuple(told))


def _check_finite(numbers: Mapping[str, StoredArray]) -> None:
    for name, array in numbers.items():
        if bad := int(array.size - np.isfinite(array).sum()):
            raise unsupported(f"{name} has {bad} numbers that are not finite; nothing was imported")


def _lossless(numbers: Mapping[str, StoredArray]) -> DType:
    """The smaller precision that keeps every number as it is."""
    with np.errstate(over="ignore"):
        exact = all(
            array.dtype == np.float16 or np.array_equal(array.astype(np.float16), array)
            for array in numbers.values()
        )
    return DType.FLOAT16 if exact else DType.FLOAT32


def _rounding(name: str, found: StoredArray, stored: StoredArray) -> list[str]:
    """What storing a tensor changed, in words; empty where nothing."""
    changed = found.astype(np.float32) != stored.astype(np.float32)
    if not changed.any():
        return []
    if not np.isfinite(stored).all():
        raise unsupported(
            f"{name} reaches {np.abs(found).max():.4g}, more than {stored.dtype} holds: import it "
            "in float32"
        )
    off = np.abs(found.astype(np.float32) - stored.astype(np.float32)).max()
    return [f"{name}: {int(changed.sum())} of {found.size} numbers rounded by at most {off:.2g}"]
