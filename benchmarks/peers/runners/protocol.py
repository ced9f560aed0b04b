"""How a runner talks: one JSON object a line, commands in, figures out. Standard library only.

→ {"ready": {...}}                      once, when everything is loaded
← {"op": "run"}
→ {"seconds": 3.1}
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Figures = Mapping[str, object]


@dataclass(frozen=True)
class Requests:
    """What every runner answers.

    Attributes:
        model: The backbone's directory.
        ids: Token ids of each text.
        adapter_of: Which adapter each text asks, below `adapters`.
        adapters: How many there are.
        batch: Texts of a padded batch.
        first_layer: Lowest layer that has adapters.
        layers: Of the backbone.
        labels: Of every head.
        vplms: How many SMILE has loaded.
    """

    model: str
    ids: Sequence[Sequence[int]]
    adapter_of: Sequence[int]
    adapters: int
    batch: int
    first_layer: int
    layers: int
    labels: int
    vplms: int

    @classmethod
    def read(cls, path: str) -> Requests:
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    @property
    def adapted_layers(self) -> list[int]:
        return list(range(self.first_layer, self.layers))

    def batches(self) -> list[list[int]]:
        """Indices of texts, `batch` at a time, in the order they came."""
        return [
            list(range(start, min(start + self.batch, len(self.ids))))
            for start in range(0, len(self.ids), self.batch)
        ]


def serve(load: Callable[[Requests], tuple[Figures, Mapping[str, Callable[[], Figures]]]]) -> None:
    """Load, tell so, and obey until standard input ends.

    The lines go to what standard output was; whatever a library prints goes to standard error.
    """
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests = Requests.read(sys.argv[1])
    about, operations = load(requests)
    _tell(lines.write, lines.flush, {"ready": dict(about)})
    for line in sys.stdin:
        answer = operations[json.loads(line)["op"]]()
        _tell(lines.write, lines.flush, answer)


def timed(work: Callable[[], None]) -> Figures:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - started}


def answering(
    answer: Callable[[Sequence[int]], object], batches: Sequence[Sequence[int]]
) -> Callable[[], Figures]:
    """An operation that answers batches one after the other."""

    def all_of_them() -> None:
        for indices in batches:
            answer(indices)

    return lambda: timed(all_of_them)


def _tell(write: Callable[[str], int], flush: Callable[[], None], answer: Figures) -> None:
    write(json.dumps(answer) + "\n")
    flush()
