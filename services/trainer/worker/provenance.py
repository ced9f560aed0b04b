"""What it takes to repeat a training: the digest of its spec, and where it ran."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from services.trainer.training.precision import Precision
from smile import __version__
from smile.model.specs import ModuleSpec
from smile.resources import ColumnMapping, HyperParameters, TrainingStates


@dataclass(frozen=True, slots=True)
class RunSpec:
    """All that decides the weights of a run, in one environment.

    Attributes:
        dataset: SHA-256 of the rows trained on.
        validation: Of the rows validated on; empty where a share of the others is drawn.
        base: Of the weights it starts from; empty for fresh ones.
        encoder: Digest of the local encoder and form of its rows, where states are not exact.
        domain: Digest of the domain's table, where they are a domain's.
    """

    module: ModuleSpec
    columns: ColumnMapping
    values: HyperParameters
    dataset: str
    validation: str = ""
    base: str = ""
    encoder: str = ""
    domain: str = ""

    @property
    def digest(self) -> str:
        """SHA-256, hex, of the spec as JSON with sorted keys. What cannot change weights does not
        count: the names of backbone and domain, but not their digests. Nor does what was once the
        only way."""
        plain = dataclasses.asdict(self)
        del plain["module"]["backbone"]
        plain["module"].pop("domain", None)
        exact = self.values.states is TrainingStates.EXACT
        if exact:
            del plain["values"]["states"], plain["encoder"]
        if exact or not self.domain:
            del plain["domain"]
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()


def environment(
    states_bytes_max: int, precision: Precision = Precision.FLOAT32
) -> Mapping[str, str]:
    """What the last bits of a result depend on besides the spec."""
    return {
        "smile": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": str(torch.get_num_threads()),
        "states_bytes_max": str(states_bytes_max),
        "precision": str(precision),
    }
