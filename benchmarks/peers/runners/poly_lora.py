"""PolyLoRA (Knowledgator): batched LoRA for any PyTorch model.

Its fast kernels are written in Triton for CUDA. On a CPU it takes its own PyTorch path, which is
what is measured there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import metadata

import torch
import transformers
from polylora import PolyLoraConfig, PolyLoraModel
from torch import Tensor

from benchmarks.peers.runners import padded
from benchmarks.peers.runners.protocol import Figures, Requests, answering, serve

RANK = 8


def load(requests: Requests) -> tuple[Figures, Mapping[str, Callable[[], Figures]]]:
    base = transformers.AutoModel.from_pretrained(requests.model, add_pooling_layer=False)
    hidden = base.config.hidden_size
    targets = [
        f"encoder.layer.{layer}.attention.self.{name}"
        for layer in requests.adapted_layers
        for name in ("query", "value")
    ]
    config = PolyLoraConfig(
        max_gpu_adapters=requests.adapters, max_rank=RANK, target_modules=targets
    )
    model = PolyLoraModel(base, config).eval()
    random = torch.Generator().manual_seed(0)
    for number in range(requests.adapters):
        state = {
            f"{target}.{side}.weight": torch.randn(shape, generator=random) * padded.HEAD_STD
            for target in model.target_module_names
            for side, shape in (("lora_A", (RANK, hidden)), ("lora_B", (hidden, RANK)))
        }
        model.adapter_store.add_adapter_from_peft_state_dict(
            f"a{number}", state, model.target_module_names, lora_alpha=2.0 * RANK
        )
    head = padded.head(requests, hidden)

    @torch.inference_mode()
    def answer(indices: Sequence[int]) -> Tensor:
        inputs = padded.padded(requests, indices)
        owners = [f"a{requests.adapter_of[index]}" for index in indices]
        states = model(**inputs, adapter_ids=owners).last_hidden_state
        logits: Tensor = head(padded.pooled(states, inputs["attention_mask"]))
        return logits

    first, *_ = batches = requests.batches()
    padded.check(answer(first), torch.cat([answer([index]) for index in first]))
    about = {"polylora": metadata.version("polylora"), "torch": torch.__version__, "rank": RANK}
    return about, {"run": answering(answer, batches)}


if __name__ == "__main__":
    serve(load)
