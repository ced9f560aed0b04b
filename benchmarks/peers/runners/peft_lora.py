"""PEFT: many LoRA adapters on one model, in mixed batches or by switching between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import peft
import torch
import transformers
from torch import Tensor

from benchmarks.peers.runners import padded
from benchmarks.peers.runners.protocol import Figures, Requests, answering, serve

RANK = 8


def lora_model(requests: Requests, count: int) -> peft.PeftModel:
    """The backbone with `count` LoRA adapters `a0`, `a1`, ... of random weights."""
    base = transformers.AutoModel.from_pretrained(requests.model, add_pooling_layer=False)
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=["query", "value"],
        layers_to_transform=requests.adapted_layers,
    )
    model = peft.get_peft_model(base, config, adapter_name="a0")
    for number in range(1, count):
        model.add_adapter(f"a{number}", config)
    padded.randomise(model, ("lora_A", "lora_B"))
    return model.eval()


def load(requests: Requests) -> tuple[Figures, Mapping[str, Callable[[], Figures]]]:
    model = lora_model(requests, requests.adapters)
    head = padded.head(requests, model.config.hidden_size)

    def names(indices: Sequence[int]) -> list[str]:
        return [f"a{requests.adapter_of[index]}" for index in indices]

    @torch.inference_mode()
    def mixed(indices: Sequence[int]) -> Tensor:
        inputs = padded.padded(requests, indices)
        states = model(**inputs, adapter_names=names(indices)).last_hidden_state
        logits: Tensor = head(padded.pooled(states, inputs["attention_mask"]))
        return logits

    @torch.inference_mode()
    def switched(indices: Sequence[int]) -> Tensor:
        """Rows of one adapter together, one adapter after the other."""
        rows: dict[str, list[int]] = {}
        for place, name in enumerate(names(indices)):
            rows.setdefault(name, []).append(place)
        logits = torch.empty(len(indices), requests.labels)
        for name, places in rows.items():
            model.set_adapter(name)
            inputs = padded.padded(requests, [indices[place] for place in places])
            states = model(**inputs).last_hidden_state
            logits[places] = head(padded.pooled(states, inputs["attention_mask"]))
        return logits

    first, *_ = batches = requests.batches()
    padded.check(mixed(first), switched(first))

    about = {"peft": peft.__version__, "torch": torch.__version__, "rank": RANK}
    return about, {
        "run_mixed": answering(mixed, batches),
        "run_switch": answering(switched, batches),
    }


if __name__ == "__main__":
    serve(load)
