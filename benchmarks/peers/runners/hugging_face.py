"""Plain Hugging Face transformers: ONE model for everybody, padded batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence

import torch
import transformers

from benchmarks.peers.runners import padded
from benchmarks.peers.runners.protocol import Figures, Requests, answering, serve

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load(requests: Requests) -> tuple[Figures, Mapping[str, Callable[[], Figures]]]:
    dtype = DTYPES[sys.argv[2]]
    model = transformers.AutoModel.from_pretrained(requests.model, add_pooling_layer=False)
    model = model.eval().to(dtype)
    head = padded.head(requests, model.config.hidden_size).to(dtype)

    @torch.inference_mode()
    def answer(indices: Sequence[int]) -> None:
        inputs = padded.padded(requests, indices)
        states = model(**inputs).last_hidden_state
        head(padded.pooled(states, inputs["attention_mask"])).float().numpy()

    by_length = sorted(range(len(requests.ids)), key=lambda index: len(requests.ids[index]))
    in_order = requests.batches()
    sorted_ones = [[by_length[place] for place in batch] for batch in in_order]
    answer(in_order[0])
    about = {"transformers": transformers.__version__, "torch": torch.__version__}
    return about, {
        "run": answering(answer, in_order),
        "run_sorted": answering(answer, sorted_ones),
    }


if __name__ == "__main__":
    serve(load)
