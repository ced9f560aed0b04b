"""SMILE's engine with all its vPLMs loaded; unlike the others it runs where SMILE is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

import numpy as np
import torch

from benchmarks.harness.engine import Asked, DenseAlone, EngineDriver, mixed_pets
from benchmarks.peers.runners.protocol import Figures, Requests, serve, timed
from services.processor.options import Precision
from smile.model.tokenizer import TokenizedText

DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}
SEED = 11


def load(requests: Requests) -> tuple[Figures, Mapping[str, Callable[[], Figures]]]:
    precision = Precision(sys.argv[2])
    driver = EngineDriver(precision)
    driver.load(mixed_pets(requests.vplms))
    texts = [TokenizedText(list(ids)) for ids in requests.ids]
    # each text asks a vPLM of its own, drawn from all that are loaded
    owners = np.random.default_rng(SEED).permutation(requests.vplms)
    mixed = [Asked(int(owners[n % len(owners)]), text) for n, text in enumerate(texts)]
    variants = {
        "run": driver.form(mixed),
        "run_small": driver.form(mixed, texts_max=requests.batch),
        "run_one": driver.form([Asked(0, text) for text in texts]),
    }
    streams = driver.settings.stream_count
    dense = DenseAlone(driver.shape, DTYPES[precision], streams)
    alone = DenseAlone(driver.shape, DTYPES[precision], streams=1)
    tokens = [formed.batch.tokens for formed in variants["run"]]
    cores = streams * torch.get_num_threads()

    def products() -> Figures:
        """The faster of two ways: batches side by side, or one after another on all cores."""
        side_by_side_s = dense.seconds(tokens)
        threads = torch.get_num_threads()
        torch.set_num_threads(cores)
        try:
            one_by_one_s = alone.seconds(tokens)
        finally:
            torch.set_num_threads(threads)
        seconds = min(side_by_side_s, one_by_one_s)
        return {"seconds": seconds, "gflops": dense.flops(sum(tokens)) / seconds / 1e9}

    def answering(name: str) -> Callable[[], Figures]:
        return lambda: timed(lambda: driver.answer(variants[name]))

    for name in variants:
        answering(name)()
    products()
    about = {
        "precision": str(precision),
        "vplms": requests.vplms,
        "batches": len(tokens),
        "batch_tokens_mean": sum(tokens) / len(tokens),
        "torch": torch.__version__,
    }
    return about, {**{name: answering(name) for name in variants}, "products": products}


if __name__ == "__main__":
    serve(load)
