"""`adapter_config.json` of a bottleneck adapter: which fields count, and which cannot be had here.

Field by field as `adapters.BnConfig` has them. One that is not known must be unset, so that what a
later release adds is refused, not overlooked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smile.model.layout import ADAPTED_BLOCKS, Block
from smile.model.port.files import Config
from smile.model.specs import PetKind

READ = frozenset(
    {
        *("mh_adapter", "output_adapter", "non_linearity", "original_ln_before"),
        *("leave_out", "scaling", "reduction_factor", "architecture"),
    }
)
# Of effect only in training, or only beside a field that is refused when set.
IDLE = frozenset(
    {
        *("dropout", "init_weights", "init_weights_seed", "stochastic_depth"),
        *("adapter_residual_before_ln", "inv_adapter_reduction_factor", "learn_phm", "phm_bias"),
        *("factorized_phm_W", "factorized_phm_rule", "hypercomplex_nonlinearity", "phm_c_init"),
        *("phm_dim", "phm_init_range", "phm_rank", "shared_W_phm", "shared_phm_rule"),
    }
)
# What they must be; where `BnConfig` has that as its default, they may be left out.
ALWAYS = {"original_ln_after": True, "residual_before_ln": True}
SWISH = frozenset({"swish", "silu"})
PLACES = {Block.ATTENTION: "mh_adapter", Block.FEEDFORWARD: "output_adapter"}


@dataclass(frozen=True, slots=True)
class BottleneckConfig:
    """What decides answers.

    Attributes:
        kind: Pfeiffer or Houlsby.
        blocks: Those that have an adapter; of Houlsby's it may be one.
        left_out: Layers without an adapter.
        scaling: What an adapter's output is multiplied by.
        name: The adapter's.
    """

    kind: PetKind
    blocks: frozenset[Block]
    left_out: frozenset[int]
    scaling: float
    name: str

    @classmethod
    def read(cls, file: Path) -> BottleneckConfig:
        """Raises `InvalidArgument`, naming field and value, for what no vPLM can express."""
        whole = Config.read(file)
        config = whole.part("config")
        if config.raw.get("architecture") is not None:
            raise config.refuse("architecture", "only bottleneck adapters are imported")
        for name, wanted in ALWAYS.items():
            if config.raw.get(name, wanted) is not wanted:
                raise config.refuse(name, f"adapters here need {wanted}")
        for name in sorted(config.raw.keys() - READ - IDLE - ALWAYS.keys()):
            if config.raw[name]:
                raise config.refuse(name, "it has no counterpart in a vPLM")
        if not isinstance(config.raw.get("scaling", 1.0), int | float):
            raise config.refuse("scaling", "adapters here are scaled by one number")
        blocks = frozenset(block for block, field in PLACES.items() if config.raw.get(field))
        return cls(
            _kind(config, blocks),
            blocks,
            _left_out(config),
            config.number("scaling") if "scaling" in config.raw else 1.0,
            whole.text("name"),
        )


def _kind(config: Config, blocks: frozenset[Block]) -> PetKind:
    """Pfeiffer's and Houlsby's differ in blocks, in what they read and in their non-linearity."""
    stated = str(config.raw.get("non_linearity")).lower()
    if config.raw.get("original_ln_before"):
        if blocks != set(ADAPTED_BLOCKS[PetKind.PFEIFFER]):
            raise config.refuse(
                "mh_adapter",
                "adapters that read normed states (original_ln_before) stand after "
                "the feed-forward block alone here",
            )
        if stated != "relu":
            raise config.refuse("non_linearity", "Pfeiffer's adapters have relu here")
        return PetKind.PFEIFFER
    if not blocks:
        raise config.refuse("output_adapter", "mh_adapter is not set either")
    if stated not in SWISH:
        raise config.refuse(
            "non_linearity", "adapters that read states as they are (Houlsby's) have swish here"
        )
    return PetKind.HOULSBY


def _left_out(config: Config) -> frozenset[int]:
    stated = config.raw.get("leave_out") or []
    if not isinstance(stated, list) or not all(type(layer) is int for layer in stated):
        raise config.wrong("leave_out", "a list of layers")
    return frozenset(stated)


def written(kind: PetKind, hidden: int, rank: int, left_out: list[int]) -> dict[str, object]:
    """The configuration of a module of ours."""
    houlsby = kind is PetKind.HOULSBY
    return {
        "adapter_residual_before_ln": False,
        "cross_adapter": False,
        "dropout": 0.0,
        "init_weights": "bert",
        "inv_adapter": None,
        "is_parallel": False,
        "leave_out": left_out,
        "ln_after": False,
        "ln_before": False,
        "mh_adapter": houlsby,
        "non_linearity": "swish" if houlsby else "relu",
        "original_ln_after": True,
        "original_ln_before": not houlsby,
        "output_adapter": True,
        "phm_layer": False,
        "reduction_factor": _factor(hidden, rank),
        "residual_before_ln": True,
        "scaling": 1.0,
        "use_gating": False,
    }


def _factor(hidden: int, rank: int) -> int | float:
    """What the library divides the width by, rounding down, to get the rank."""
    return hidden // rank if hidden % rank == 0 else hidden / (rank + 0.5)
