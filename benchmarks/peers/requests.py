"""The requests that every program is given: tokenised once, the same for all."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import workload
from benchmarks.peers.runners.protocol import Requests
from smile.backbone_config import BACKBONES_DEFAULT
from smile.model.checkpoint import read_config
from smile.model.sources import describe, parse_sources
from smile.model.tokenizer import TextTokenizer

ADAPTERS = 32
BATCH = 32
LABELS = 5
SEED = 17


def requests_of(texts: Sequence[str], *, vplms: int) -> Requests:
    """Each text asks one of `ADAPTERS` adapters, drawn evenly."""
    path = next(iter(parse_sources(BACKBONES_DEFAULT))).locate()
    shape = describe(path).shape
    vocab = read_config(path).vocab
    tokenizer = TextTokenizer.load(path, tokens_max=shape.tokens_max, vocab=vocab)
    return Requests(
        model=str(path),
        ids=[list(text.ids) for text in tokenizer.encode(texts)],
        adapter_of=[int(n) for n in workload.uniform(len(texts), ADAPTERS, seed=SEED)],
        adapters=ADAPTERS,
        batch=BATCH,
        first_layer=shape.layers // 2,
        layers=shape.layers,
        labels=LABELS,
        vplms=vplms,
    )
