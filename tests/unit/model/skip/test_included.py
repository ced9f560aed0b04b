"""The local encoder that comes with SMILE: for MiniLM, small, and close to it."""

from __future__ import annotations

import torch
from torch.nn import functional

from smile.model.backbone import Backbone
from smile.model.packing import pack
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.included import included_for, included_paths

BYTES_MAX = 15_000_000
BOUNDARY = 3
TEXTS = [
    "The central bank left interest rates unchanged, and shares fell in London.",
    "She scored twice in the second half before the crowd left in the rain.",
    "The new phone has a larger screen, a faster chip and no headphone socket.",
]


def test_there_is_one_for_minilm(minilm: Backbone) -> None:
    found = included_for(minilm.digest, BOUNDARY)
    assert found is not None
    path, file = found
    assert path in included_paths()
    assert file.bytes == path.stat().st_size <= BYTES_MAX
    assert file.facts.backbone == "minilm" and file.facts.tokens > 1_000_000
    measures = file.facts.measures
    assert measures["probe_exact"] - measures["probe_materialized"] < 0.02
    assert measures["cosine_layer_6"] > 0.9
    assert included_for(minilm.digest, BOUNDARY + 1) is None
    assert included_for("0" * 64) is None


@torch.no_grad()
def test_it_comes_close_to_the_ordinary_backbone(minilm: Backbone) -> None:
    found = included_for(minilm.digest)
    assert found is not None
    encoder = LocalEncoder.of(found[1], minilm)
    packed = pack([text.ids for text in minilm.tokenizer.encode(TEXTS)])
    ordinary = minilm.forward_layers(minilm.embed(packed), packed, 0, 6)
    local = minilm.forward_layers(encoder(packed), packed, BOUNDARY, 6)
    wanted, found_states = (
        torch.stack([part.mean(dim=0) for part in states.split(packed.lengths)])
        for states in (ordinary, local)
    )
    assert functional.cosine_similarity(wanted, found_states).min() > 0.85
    others = functional.cosine_similarity(wanted, wanted.roll(1, 0))
    assert others.max() < 0.5  # which texts of other meaning are far from
