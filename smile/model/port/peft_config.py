"""`adapter_config.json` of a LoRA: which fields count, which do not, and which cannot be had here.

A field that is not known must be unset, so that what a later PEFT adds is refused, not overlooked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from smile.model.checkpoint import PLACES, Family, path_of
from smile.model.port.files import Config, shown
from smile.model.port.values import malformed

READ = frozenset(
    [
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "modules_to_save",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "task_type",
        "use_rslora",
    ]
)
# How it was trained or with which release: of no effect on answers.
IDLE = frozenset(
    [
        "auto_mapping",
        "base_model_name_or_path",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_ga_config",
        "megatron_core",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
    ]
)
# Initial weights that leave the backbone as it is; others change it and store only the rest.
INITIALISERS = frozenset({"gaussian", "eva", "orthogonal"})
WHY = {
    "peft_type": "only LORA is imported from PEFT folders",
    "bias": "LoRA here trains no bias; import the merged model as a whole instead",
    "fan_in_fan_out": "the backbone's weights are [outputs, inputs]",
    "init_lora_weights": "it changes the backbone itself; convert it with PEFT's "
    "path_initial_model_for_weight_conversion",
}
ALL_LINEAR = "all-linear"


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """What decides answers."""

    config: Config

    @classmethod
    def read(cls, file: Path) -> LoraConfig:
        """Raises `InvalidArgument`, naming field and value, for what no vPLM can express."""
        config = Config.read(file)
        raw = config.raw
        if raw.get("peft_type") != "LORA":
            raise config.refuse("peft_type", WHY["peft_type"])
        if raw.get("bias", "none") != "none":
            raise config.refuse("bias", WHY["bias"])
        if raw.get("fan_in_fan_out"):
            raise config.refuse("fan_in_fan_out", WHY["fan_in_fan_out"])
        start = raw.get("init_lora_weights", True)
        if not isinstance(start, bool) and str(start) not in INITIALISERS:
            raise config.refuse("init_lora_weights", WHY["init_lora_weights"])
        for name in sorted(raw.keys() - READ - IDLE):
            if raw[name]:
                raise config.refuse(name, "it has no counterpart in a vPLM")
        return cls(config)

    def alpha(self, path: str) -> float:
        """What the update of a module is multiplied by, times its rank."""
        rank = self._of("rank_pattern", path, "r")
        alpha = self._of("alpha_pattern", path, "lora_alpha")
        if rank < 1 or rank != int(rank) or alpha <= 0:
            raise malformed(
                f"{self.config.file}: rank and alpha of '{path}' must be positive, got {rank:g} "
                f"and {alpha:g}"
            )
        return alpha * math.sqrt(rank) if self.config.raw.get("use_rslora") else alpha

    def rank(self, path: str) -> int:
        """The rank that the configuration gives a module."""
        return int(self._of("rank_pattern", path, "r"))

    def _of(self, patterns: str, path: str, default: str) -> float:
        """A module's own number, by the first pattern that its path ends with."""
        own = self.config.part(patterns)
        for pattern in own.raw:
            if self._match(re.match, rf"(.*\.)?({pattern})$", path, patterns):
                return own.number(pattern)
        return self.config.number(default)

    def check_targets(self, paths: Iterable[str], layers: int, family: Family) -> None:
        """Raises `InvalidArgument` unless the tensors are those of the modules that
        `target_modules` and its companions name: PEFT would leave out the others."""
        there = set(paths)
        if str(self.config.raw.get("target_modules")).lower() == ALL_LINEAR:
            return
        prefix = f"{family}." if any(path.startswith(f"{family}.") for path in there) else ""
        every = {
            prefix + path_of(layer, place) for layer in range(layers) for place in PLACES.values()
        }
        meant = {path for path in every if self._targets(path)}
        if odd := sorted(path for path in there if not self._targets(path)):
            raise malformed(
                f"{self.config.file}: target_modules {self._told()} leave out '{odd[0]}', of which "
                "there are tensors"
            )
        if missing := sorted(meant - there):
            raise malformed(
                f"{self.config.file}: target_modules {self._told()} include '{missing[0]}', of "
                "which there are no tensors"
            )

    def _told(self) -> str:
        return shown(self.config.raw.get("target_modules"))

    def _targets(self, path: str) -> bool:
        """As PEFT's `check_target_module_exists` decides."""
        raw = self.config.raw
        excluded = raw.get("exclude_modules")
        if excluded and self._named("exclude_modules", path):
            return False
        if not self._named("target_modules", path):
            return False
        chosen = raw.get("layers_to_transform")
        if isinstance(raw.get("target_modules"), str) or chosen is None or chosen == []:
            return True
        layer = self._layer(path)
        return layer in chosen if isinstance(chosen, list) else layer == chosen

    def _named(self, field: str, path: str) -> bool:
        names = self.config.raw.get(field)
        if isinstance(names, str):
            return self._match(re.fullmatch, names, path, field) is not None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self.config.wrong(field, "an expression or a list of names")
        return any(path == name or path.endswith(f".{name}") for name in names)

    def _layer(self, path: str) -> int | None:
        patterns = self.config.raw.get("layers_pattern") or [r"[^.]*"]
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            expression = rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\."
            found = self._match(re.match, expression, path, "layers_pattern")
            if found is not None:
                return int(found["layer"])
        return None

    def _match(
        self,
        how: Callable[[str, str], re.Match[str] | None],
        expression: str,
        path: str,
        field: str,
    ) -> re.Match[str] | None:
        try:
            return how(expression, path)
        except re.error as error:
            raise self.config.wrong(field, f"a regular expression ({error})") from error
