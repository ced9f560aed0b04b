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
  own frozen bias, so zero is the identity.

Heads: `head.weight` [L, H] and `head.bias` [L]; an embedding head has none.
"""

from __future__ import annotations

import enum

from smile.errors import InvalidSpec
from smile.model.specs import (
    BackboneShape,
    DType,
    ModuleSpec,
    PetKind,
    PetSpec,
    Projection,
    Task,
    TensorSpec,
)

HEAD_WEIGHT = "head.weight"
HEAD_BIAS = "head.bias"


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


def projection_shape(projection: Projection, shape: BackboneShape) -> tuple[int, int]:
    """(outputs, inputs) of one of the backbone's dense products."""
    if projection is Projection.INTERMEDIATE:
        return shape.intermediate, shape.hidden
    if projection is Projection.OUTPUT:
        return shape.hidden, shape.intermediate
    return shape.hidden, shape.hidden


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


def tensors(spec: ModuleSpec, shape: BackboneShape) -> dict[str, TensorSpec]:
    """Every tensor of a module, by name, in canonical order.

    Raises:
        InvalidSpec: the PET spec is not placed, or does not fit the backbone.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in pet_layers(spec.pet, shape):
        shapes |= _layer_shapes(spec.pet, shape, layer)
    if spec.head.task is not Task.EMBEDDING:
        shapes[HEAD_WEIGHT] = (len(spec.head.labels), shape.hidden)
        shapes[HEAD_BIAS] = (len(spec.head.labels),)
    return {name: TensorSpec(size, spec.dtype) for name, size in shapes.items()}


def bytes_total(spec: ModuleSpec, shape: BackboneShape) -> int:
    """Bytes of a module's tensors, without the file's header."""
    width = {DType.FLOAT16: 2, DType.FLOAT32: 4}[spec.dtype]
    return width * sum(elements(tensor) for tensor in tensors(spec, shape).values())


def elements(tensor: TensorSpec) -> int:
    """Numbers in one tensor."""
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _layer_shapes(pet: PetSpec, shape: BackboneShape, layer: int) -> dict[str, tuple[int, ...]]:
    if pet.kind is PetKind.LORA:
        return _lora_shapes(pet, shape, layer)
    if pet.kind is PetKind.BITFIT:
        return _bias_shapes(shape, layer)
    return _adapter_shapes(pet, shape, layer)


def _adapter_shapes(pet: PetSpec, shape: BackboneShape, layer: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for block in ADAPTED_BLOCKS[pet.kind]:
        prefix = adapter_name(layer, block)
        shapes[f"{prefix}.down.weight"] = (pet.rank, shape.hidden)
        shapes[f"{prefix}.down.bias"] = (pet.rank,)
        shapes[f"{prefix}.up.weight"] = (shape.hidden, pet.rank)
        shapes[f"{prefix}.up.bias"] = (shape.hidden,)
    return shapes


def _lora_shapes(pet: PetSpec, shape: BackboneShape, layer: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for projection in pet.targets:
        outputs, inputs = projection_shape(projection, shape)
        shapes[f"{lora_name(layer, projection)}.a"] = (pet.rank, inputs)
        shapes[f"{lora_name(layer, projection)}.b"] = (outputs, pet.rank)
    return shapes


def _bias_shapes(shape: BackboneShape, layer: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for projection in Projection:
        shapes[bias_name(layer, projection)] = (projection_shape(projection, shape)[0],)
    for norm in Norm:
        shapes[bias_name(layer, norm)] = (shape.hidden,)
    return shapes
