"""A module in serving form: float32, padded to its shape class, ready for grouped products."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from smile.model import stored
from smile.model.backbone import Backbone
from smile.model.grouped import Weights, padded_width, zero_padded
from smile.model.initial import FloatArray
from smile.model.layout import HEAD_BIAS, HEAD_WEIGHT, pet_layers
from smile.model.pet import METHODS
from smile.model.pet.method import ShapeClass
from smile.model.reference import check_backbone
from smile.model.specs import ModuleSpec, Task


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModule:
    """One vPLM's weights as the batched engine reads them. Immutable; compared by identity.

    Attributes:
        spec: The module's spec.
        boundary: Index of the first layer with a PET op; the number of layers if there is none.
        shape_class: What it shares with modules it is grouped with.
        labels_width: Padded number of labels; 0 for an embedding head.
        weights: Serving tensors by the layout's names. `head.weight` is [H, labels_width].
        nbytes: Memory the weights take.
    """

    spec: ModuleSpec
    boundary: int
    shape_class: ShapeClass
    labels_width: int
    weights: Weights
    nbytes: int

    @classmethod
    def load(
        cls, spec: ModuleSpec, tensors: Mapping[str, FloatArray], backbone: Backbone
    ) -> LoadedModule:
        """Stored tensors, as `weights.decode` gives them, in serving form on the backbone's device.

        Raises:
            FailedPrecondition: the module was made for another backbone.
            DataCorrupted: the tensors are not those of the spec.
        """
        check_backbone(spec, backbone)
        plain = stored.to_torch(tensors, spec, backbone.shape)
        layers = pet_layers(spec.pet, backbone.shape)
        served: dict[str, Tensor] = {}
        for layer in layers:
            served |= METHODS[spec.pet.kind].serving(spec.pet, layer, plain)
        labels_width = 0
        if spec.head.task is not Task.EMBEDDING:
            labels_width = padded_width(len(spec.head.labels))
            weight = plain[HEAD_WEIGHT]
            served[HEAD_WEIGHT] = zero_padded(weight.T, weight.shape[1], labels_width)
            served[HEAD_BIAS] = zero_padded(plain[HEAD_BIAS], labels_width)
        device = backbone.embeddings.word.device
        return cls(
            spec=spec,
            boundary=layers.start,
            shape_class=ShapeClass.of(spec.pet),
            labels_width=labels_width,
            weights={name: tensor.to(device) for name, tensor in served.items()},
            nbytes=sum(tensor.nbytes for tensor in served.values()),
        )
