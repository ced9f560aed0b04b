"""PEFT's hot-swapping under load: a few slots, more adapters than slots, one request at a time.

Adapters lie on disk as PEFT saves them. One that is in a slot is switched to; for one that is not,
the slot used least recently is overwritten in place (`peft.utils.hotswap.hotswap_adapter`), which
is PEFT's own answer to more adapters than memory. Requests come on a Poisson schedule at three
tenths of the rate at which the model answers when all adapters are in slots; a latency counts from
the schedule.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import save_file

from benchmarks.peers.runners import padded
from benchmarks.peers.runners.protocol import Figures, Requests, serve

RANK = 32  # query and value of six layers: as many numbers as SMILE's modules in this test
RATE_SHARE = 0.3
PROBES = 100
BEHIND_MAX = 2.0  # times the schedule, after which a run is stopped


class Swapping:
    """A model with `slots` adapters, and any number on disk."""

    def __init__(self, requests: Requests, slots: int, folder: Path) -> None:
        self._requests = requests
        self._folder = folder
        self._config = peft.LoraConfig(
            r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"]
        )
        base = transformers.AutoModel.from_pretrained(requests.model, add_pooling_layer=False)
        self._model = peft.get_peft_model(base, self._config, adapter_name="slot0")
        for slot in range(1, slots):
            self._model.add_adapter(f"slot{slot}", self._config)
        padded.randomise(self._model, ("lora_A", "lora_B"))
        self._model.eval()
        self._head = padded.head(requests, base.config.hidden_size)
        self._slots: OrderedDict[int, str] = OrderedDict()
        self._free = [f"slot{slot}" for slot in range(slots)]

    def save(self, count: int) -> None:
        """Write `count` adapters to disk."""
        state = peft.get_peft_model_state_dict(self._model, adapter_name="slot0")
        random = torch.Generator().manual_seed(1)
        for number in range(count):
            folder = self._folder / str(number)
            folder.mkdir()
            self._config.save_pretrained(str(folder))
            save_file(
                {
                    name: torch.randn(tensor.shape, generator=random) * padded.HEAD_STD
                    for name, tensor in state.items()
                },
                folder / "adapter_model.safetensors",
            )

    @torch.inference_mode()
    def answer(self, adapter: int, text: int) -> None:
        self._model.set_adapter(self._slot(adapter))
        inputs = padded.padded(self._requests, [text])
        states = self._model(**inputs).last_hidden_state
        self._head(padded.pooled(states, inputs["attention_mask"])).numpy()

    def _slot(self, adapter: int) -> str:
        if adapter in self._slots:
            self._slots.move_to_end(adapter)
            return self._slots[adapter]
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        hotswap_adapter(self._model, str(self._folder / str(adapter)), slot, torch_device="cpu")
        self._slots[adapter] = slot
        return slot


class Load:
    """Requests on a schedule, answered one after the other."""

    def __init__(self, swapping: Swapping, texts: int, slots: int, duration_s: float) -> None:
        self._swapping = swapping
        self._texts = texts
        self._slots = slots
        self._duration_s = duration_s
        self._repetitions: dict[str, int] = {}
        for adapter in range(slots):
            swapping.answer(adapter, adapter)
        started = time.perf_counter()
        for number in range(PROBES):
            swapping.answer(number % slots, number % texts)
        self.rate_per_s = RATE_SHARE * PROBES / (time.perf_counter() - started)

    def run(self, distribution: str, factor: int) -> Figures:
        """p50 and p95 in milliseconds with `factor` adapters for each slot."""
        name = f"{distribution}_{factor}x"
        repetition = self._repetitions[name] = self._repetitions.get(name, 0) + 1
        random = np.random.default_rng(100 * repetition + factor)
        members = factor * self._slots
        weights = np.ones(members) if distribution == "uniform" else 1 / np.arange(1, members + 1)
        count = max(1, random.poisson(self.rate_per_s * self._duration_s))
        picks = random.choice(members, count + self._slots, p=weights / weights.sum())
        for adapter in range(self._slots) if factor == 1 else picks[count:]:
            self._swapping.answer(int(adapter), 0)
        schedule = np.sort(random.uniform(0, self._duration_s, count))
        adapters = [int(pick) for pick in picks[:count]]
        latencies_ms = sorted(self._answered(schedule.tolist(), adapters))
        return {
            "p50_ms": latencies_ms[math.ceil(0.50 * count) - 1],
            "p95_ms": latencies_ms[math.ceil(0.95 * count) - 1],
            "answered": count,
        }

    def _answered(self, schedule: Sequence[float], adapters: Sequence[int]) -> list[float]:
        """Milliseconds of every request. Where the model falls too far behind, those that are left
        count as if they were answered when it is stopped: at least so long would they wait.
        """
        found = []
        start = time.perf_counter()
        for number, (offset, adapter) in enumerate(zip(schedule, adapters, strict=True)):
            time.sleep(max(0.0, start + offset - time.perf_counter()))
            if time.perf_counter() - start < BEHIND_MAX * self._duration_s:
                self._swapping.answer(adapter, number % self._texts)
            found.append((time.perf_counter() - start - offset) * 1e3)
        return found


def load(requests: Requests) -> tuple[Figures, Mapping[str, Callable[[], Figures]]]:
    slots, factor_max, duration_s = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    folder = tempfile.mkdtemp(prefix="peft-", dir=Path(sys.argv[1]).parent)
    swapping = Swapping(requests, slots, Path(folder))
    swapping.save(slots * factor_max)
    under = Load(swapping, len(requests.ids), slots, duration_s)
    about = {"peft": peft.__version__, "slots": slots, "rank": RANK, "rate_per_s": under.rate_per_s}
    return about, {
        f"{distribution}_{factor}x": partial(under.run, distribution, factor)
        for distribution in ("uniform", "zipf")
        for factor in (1, 2, 8)
    }


if __name__ == "__main__":
    serve(load)
