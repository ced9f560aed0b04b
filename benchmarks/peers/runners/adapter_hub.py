"""AdapterHub: Pfeiffer adapters in one batch through `BatchSplit`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import adapters
import torch
import transformers
from adapters import SeqBnConfig
from adapters.composition import BatchSplit
from torch import Tensor

from benchmarks.peers.runners import padded
from benchmarks.peers.runners.protocol import Figures, Requests, answering, serve

REDUCTION = 16  # 384 / 16 = 24, SMILE's default width


def load(requests: Requests) -> tuple[Figures, Mapping[str, Callable[[], Figures]]]:
    model = transformers.AutoModel.from_pretrained(requests.model, add_pooling_layer=False)
    adapters.init(model)
    config = SeqBnConfig(reduction_factor=REDUCTION, leave_out=list(range(requests.first_layer)))
    for number in range(requests.adapters):
        model.add_adapter(f"a{number}", config=config)
    padded.randomise(model, ("adapter_down", "adapter_up"))
    model.eval()
    head = padded.head(requests, model.config.hidden_size)

    @torch.inference_mode()
    def split(indices: Sequence[int]) -> Tensor:
        """[texts, labels], in the order asked; BatchSplit wants rows of an adapter together."""
        order = sorted(range(len(indices)), key=lambda place: requests.adapter_of[indices[place]])
        owners = [requests.adapter_of[indices[place]] for place in order]
        names = list(dict.fromkeys(owners))
        model.active_adapters = BatchSplit(
            *(f"a{owner}" for owner in names), batch_sizes=[owners.count(o) for o in names]
        )
        inputs = padded.padded(requests, [indices[place] for place in order])
        states = model(**inputs).last_hidden_state
        logits = torch.empty(len(indices), requests.labels)
        logits[order] = head(padded.pooled(states, inputs["attention_mask"]))
        return logits

    @torch.inference_mode()
    def alone(index: int) -> Tensor:
        model.active_adapters = f"a{requests.adapter_of[index]}"
        inputs = padded.padded(requests, [index])
        states = model(**inputs).last_hidden_state
        logits: Tensor = head(padded.pooled(states, inputs["attention_mask"]))
        return logits

    first, *_ = batches = requests.batches()
    padded.check(split(first), torch.cat([alone(index) for index in first]))
    about = {
        "adapters": adapters.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "width": model.config.hidden_size // REDUCTION,
    }
    return about, {"run": answering(split, batches)}


if __name__ == "__main__":
    serve(load)
