"""Which tensors a module has: the one place that names and shapes them.

Pure. The creator fills this layout, the trainer exports it, storage and processor check against
it. `r` is the rank, `H` the hidden width, `L` the number of labels; a matrix is [outputs, inputs].
Every layer `i` from the spec's `first_layer` upwards has:

- pfeiffer: `layers.{i}.feedforward.adapter.` + `down.weight` [r, H], `down.bias` [r],
  `up.weight` [H, r], `up.bias` [H];
- houlsby: the same, and the same four under `layers.{i}.attention.adapter.`;
- lora, for each target: `layers.{i}.{projection}.lora.a` [r, inputs] and `.b` [outputs, r];
- bitfit: `layers.{i}.{projection}.bias` [outputs] for all six projections, and
  `layers.{i}.{attention_norm,output_norm}.bias` [H]. These are *deltas*, added to the backbone's
  own frozen bias, so zero is the identity;
- diff-pruning: bitfit's, and for all six projections `layers.{i}.{projection}.delta.indices`
  (int32) and `.delta.values`, both [n]: which entries change and by how much. n is the spec's
  density times the matrix's entries, rounded down, at least 1;
- mask-bert: for all six projections `layers.{i}.{projection}.mask.bits` (uint8), a bit per entry,
  set where the entry counts as zero. At most n are;
- full: bitfit's, and for all six projections `layers.{i}.{projection}.weight` and for both norms
  `layers.{i}.{norm}.weight`; beside the layers `embeddings.tables.weight` [rows, H], the tables of
  words, positions and segments one below the other, and `embeddings.norm.weight` and `.bias` [H].
  All are deltas.

Heads: `head.weight` [L, H] and `head.bias` [L]; an embedding head has none. With pooling `pooler`
also `head.pooler.weight` [H, H] and `head.pooler.bias` [H].
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType

from smile.errors import InvalidSpec
from smile.model.specs import (
    BackboneShape,
    Choice,
    DType,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Projection,
    Task,
    TensorSpec,
)

HEAD_WEIGHT = "head.weight"
HEAD_BIAS = "head.bias"
POOLER_WEIGHT = "head.pooler.weight"
POOLER_BIAS = "head.pooler.bias"
TABLES_WEIGHT = "embeddings.tables.weight"
TABLES_NORM_WEIGHT = "embeddings.norm.weight"
TABLES_NORM_BIAS = "embeddings.norm.bias"
INDICES_SUFFIX = ".delta.indices"
BITS_SUFFIX = ".mask.bits"
DTYPE_BYTES: Mapping[DType | Choice, int] = {
    DType.FLOAT16: 2,
    DType.FLOAT32: 4,
    Choice.INDICES: 4,
    Choice.BITS: 1,
}
LAYOUTS_KEPT_MAX = 1024
SERVED_PERMILLE = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50)  # ascending, up to DENSITY_MAX


class Block(enum.StrEnum):
    """The two halves of a transformer layer; a bottleneck adapter sits after one of them."""

    ATTENTION = "attention"
    FEEDFORWARD = "feedforward"


class Norm(enum.StrEnum):
    """The two layer norms of a (post-norm) transformer layer."""

    ATTENTION = "attention_norm"
    OUTPUT = "output_norm"


ADAPTED_BLOCKS: dict[PetKind, tuple[Block, ...]] = {
    PetKind.PFEIFFER: (Block.FEEDFORWARD,),
    PetKind.HOULSBY: (Block.ATTENTION, Block.FEEDFORWARD),
}


def adapter_name(layer: int, block: Block) -> str:
    """Prefix of an adapter's tensors; `.down.weight` and the like follow."""
    return f"layers.{layer}.{block}.adapter"


def lora_name(layer: int, projection: Projection) -> str:
    """Prefix of a low-rank update's tensors; `.a` and `.b` follow."""
    return f"layers.{layer}.{projection}.lora"


def bias_name(layer: int, place: Projection | Norm) -> str:
    """Name of a BitFit delta."""
    return f"layers.{layer}.{place}.bias"


def weight_name(layer: int, place: Projection | Norm) -> str:
    """Name of a whole matrix's or a norm's delta."""
    return f"layers.{layer}.{place}.weight"


def delta_name(layer: int, projection: Projection) -> str:
    """Prefix of a sparse update's tensors; `.indices` and `.values` follow."""
    return f"layers.{layer}.{projection}.delta"


def mask_name(layer: int, projection: Projection) -> str:
    """Name of a mask."""
    return f"layers.{layer}.{projection}{BITS_SUFFIX}"


def projection_shape(projection: Projection, shape: BackboneShape) -> tuple[int, int]:
    """(outputs, inputs) of one of the backbone's dense products."""
    if projection is Projection.INTERMEDIATE:
        return shape.intermediate, shape.hidden
    if projection is Projection.OUTPUT:
        return shape.hidden, shape.intermediate
    return shape.hidden, shape.hidden


def chosen_count(pet: PetSpec, entries: int) -> int:
    """How many entries of a matrix of so many a sparse kind chooses, or may at most."""
    return max(1, int(pet.density * entries))


def served_permille(pet: PetSpec) -> int:
    """The step that a sparse kind's density is padded to for serving; 0 for other kinds."""
    if pet.density == 0:
        return 0
    return next(step for step in SERVED_PERMILLE if pet.density <= step / 1000)


def served_count(pet: PetSpec, entries: int) -> int:
    """`chosen_count` padded: specs of near densities are served in tensors of one length."""
    return max(1, math.ceil(served_permille(pet) * entries / 1000))


def dtype_of(name: str, precision: DType) -> DType | Choice:
    """What a stored tensor holds, by its name."""
    if name.endswith(INDICES_SUFFIX):
        return Choice.INDICES
    return Choice.BITS if name.endswith(BITS_SUFFIX) else precision


def pet_layers(pet: PetSpec, shape: BackboneShape) -> range:
    """The layers that carry the PET module. Empty for kind `none`.

    Raises:
        InvalidSpec: the spec is not placed, or does not fit the backbone.
    """
    if pet.first_layer is None:
        raise InvalidSpec("first_layer is undecided: place the PET spec on a backbone first")
    first = pet.placed(shape).first_layer
    assert first is not None
    if pet.kind is PetKind.NONE:
        return range(shape.layers, shape.layers)
    return range(first, shape.layers)


def tensors(spec: ModuleSpec, shape: BackboneShape) -> Mapping[str, TensorSpec]:
    """Every tensor of a module, by name, in canonical order.

    Raises:
        InvalidSpec: the PET spec is not placed, or does not fit the backbone.
    """
    return tensors_of(Sizes.of(spec), shape)


@dataclass(frozen=True, slots=True)
class Sizes:
    """What decides a module's tensors: thousands of modules have a few between them.

    Attributes:
        labels: Of the head; None for an embedding head.
    """

    pet: PetSpec
    labels: int | None
    pooling: Pooling
    dtype: DType

    @classmethod
    def of(cls, spec: ModuleSpec) -> Sizes:
        labels = None if spec.head.task is Task.EMBEDDING else len(spec.head.labels)
        return cls(spec.pet, labels, spec.head.pooling, spec.dtype)


@lru_cache(maxsize=LAYOUTS_KEPT_MAX)
def tensors_of(sizes: Sizes, shape: BackboneShape) -> Mapping[str, TensorSpec]:
    """As `tensors`, and raises the same."""
    pet, dtype = sizes.pet, sizes.dtype
    found: dict[str, TensorSpec] = {}
    if pet.kind is PetKind.FULL:
        found[TABLES_WEIGHT] = TensorSpec((table_rows(shape), shape.hidden), dtype)
        for name in (TABLES_NORM_WEIGHT, TABLES_NORM_BIAS):
            found[name] = TensorSpec((shape.hidden,), dtype)
    for layer in pet_layers(pet, shape):
        found |= _LAYER_TENSORS[pet.kind](sizes, shape, layer)
    if sizes.labels is not None:
        found[HEAD_WEIGHT] = TensorSpec((sizes.labels, shape.hidden), dtype)
        found[HEAD_BIAS] = TensorSpec((sizes.labels,), dtype)
    if sizes.pooling is Pooling.POOLER:
        found[POOLER_WEIGHT] = TensorSpec((shape.hidden, shape.hidden), dtype)
        found[POOLER_BIAS] = TensorSpec((shape.hidden,), dtype)
    return MappingProxyType(found)


def table_rows(shape: BackboneShape) -> int:
    """Rows of the backbone's tables of words, positions and segments together: of its numbers,
    those that are in no layer and no norm.

    Raises:
        InvalidSpec: the numbers do not come to whole rows.
    """
    vectors = len(Norm) * 2 * shape.hidden
    layer = vectors + sum(
        outputs * (inputs + 1)
        for outputs, inputs in (projection_shape(projection, shape) for projection in Projection)
    )
    rows, rest = divmod(shape.parameters - shape.layers * layer, shape.hidden)
    if rest or rows <= 2:  # the norm's two
        raise InvalidSpec(
            f"{shape.parameters} parameters are not those of an encoder of {shape.layers} layers "
            f"of width {shape.hidden}"
        )
    return rows - 2


def bytes_total(spec: ModuleSpec, shape: BackboneShape) -> int:
    """Bytes of a module's tensors, without the file's header."""
    found = tensors(spec, shape).values()
    return sum(DTYPE_BYTES[tensor.dtype] * elements(tensor) for tensor in found)


def elements(tensor: TensorSpec) -> int:
    """Numbers in one tensor."""
    count = 1
    for size in tensor.shape:
        count *= size
    return count


_Tensors = dict[str, TensorSpec]


def _adapter_tensors(sizes: Sizes, shape: BackboneShape, layer: int) -> _Tensors:
    rank, found = sizes.pet.rank, _Tensors()
    for block in ADAPTED_BLOCKS[sizes.pet.kind]:
        prefix = adapter_name(layer, block)
        found[f"{prefix}.down.weight"] = TensorSpec((rank, shape.hidden), sizes.dtype)
        found[f"{prefix}.down.bias"] = TensorSpec((rank,), sizes.dtype)
        found[f"{prefix}.up.weight"] = TensorSpec((shape.hidden, rank), sizes.dtype)
        found[f"{prefix}.up.bias"] = TensorSpec((shape.hidden,), sizes.dtype)
    return found


def _lora_tensors(sizes: Sizes, shape: BackboneShape, layer: int) -> _Tensors:
    rank, found = sizes.pet.rank, _Tensors()
    for projection in sizes.pet.targets:
        outputs, inputs = projection_shape(projection, shape)
        found[f"{lora_name(layer, projection)}.a"] = TensorSpec((rank, inputs), sizes.dtype)
        found[f"{lora_name(layer, projection)}.b"] = TensorSpec((outputs, rank), sizes.dtype)
    return found


def _bias_tensors(sizes: Sizes, shape: BackboneShape, layer: int) -> _Tensors:
    found = _Tensors()
    for projection in Projection:
        outputs = projection_shape(projection, shape)[0]
        found[bias_name(layer, projection)] = TensorSpec((outputs,), sizes.dtype)
    for norm in Norm:
        found[bias_name(layer, norm)] = TensorSpec((shape.hidden,), sizes.dtype)
    return found


def _delta_tensors(sizes: Sizes, shape: BackboneShape, layer: int) -> _Tensors:
    found = _Tensors()
    for projection in Projection:
        entries = math.prod(projection_shape(projection, shape))
        count = chosen_count(sizes.pet, entries)
        prefix = delta_name(layer, projection)
        found[f"{prefix}.indices"] = TensorSpec((count,), Choice.INDICES, entries, count)
        found[f"{prefix}.values"] = TensorSpec((count,), sizes.dtype)
    return found | _bias_tensors(sizes, shape, layer)


def _mask_tensors(sizes: Sizes, shape: BackboneShape, layer: int) -> _Tensors:
    found = _Tensors()
    for projection in Projection:
        entries = math.prod(projection_shape(projection, shape))
        found[mask_name(layer, projection)] = TensorSpec(
            (math.ceil(entries / 8),), Choice.BITS, entries, chosen_count(sizes.pet, entries)
        )
    return found


def _full_tensors(sizes: Sizes, shape: BackboneShape, layer: int) -> _Tensors:
    found = _Tensors()
    for projection in Projection:
        found[weight_name(layer, projection)] = TensorSpec(
            projection_shape(projection, shape), sizes.dtype
        )
    for norm in Norm:
        found[weight_name(layer, norm)] = TensorSpec((shape.hidden,), sizes.dtype)
    return found | _bias_tensors(sizes, shape, layer)


_LAYER_TENSORS: Mapping[PetKind, Callable[[Sizes, BackboneShape, int], _Tensors]] = {
    PetKind.PFEIFFER: _adapter_tensors,
    PetKind.HOULSBY: _adapter_tensors,
    PetKind.LORA: _lora_tensors,
    PetKind.BITFIT: _bias_tensors,
    PetKind.DIFF_PRUNING: _delta_tensors,
    PetKind.MASK_BERT: _mask_tensors,
    PetKind.FULL: _full_tensors,
}
