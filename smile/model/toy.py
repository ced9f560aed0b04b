"""A tiny random BERT on disk, for tests and examples: real file formats, milliseconds to build.

The directory holds what a downloaded checkpoint holds (`config.json`, `model.safetensors`,
`tokenizer.json`, `vocab.txt`), so every code path that reads a real backbone reads this one.
Needs numpy and safetensors only.
"""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = tuple(
    """a about after all also an and any are as at back bad be because been bird black blue book
    boy bread bright but buy by calm car cat city cold come could day did dog down dry each
    eat end even fast film find fire fish five food for four from game get girl give go goal
    good great green had happy hard has hate have he her here high him his hot house how i ice
    if in into is it its just kind king know land last late less let life light like little
    london long look lose love low luck make man many market match may me milk mind money moon
    more most mother mouse movie music my near never new news night no not now of off old on
    one only open or other our out over paris park people place plan play player poor price
    queen rain red rich river road run sad salt sea see sell share she ship shop short sing
    six slow small so some song sport star stock stop story sun sweet take tall team ten than
    that the their them then there they this three time to town trade train tree two ugly
    under up use very war warm was water way we well were wet what when white who wide will
    win wind with woman word work world would year yes you young your ##ed ##er ##ing ##ly ##s
    ##es ##est ##ness""".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class ToyShape:
    """Dimensions of the toy encoder. The defaults take a few hundred KB."""

    layers: int = 4
    hidden: int = 32
    heads: int = 4
    intermediate: int = 64
    tokens_max: int = 128


def write_toy_backbone(folder: Path, *, seed: int = 0, shape: ToyShape | None = None) -> Path:
    """Writes a random BERT checkpoint into `folder` (made if absent) and returns it.

    The same seed and shape give the same bytes.
    """
    shape = shape or ToyShape()
    folder.mkdir(parents=True, exist_ok=True)
    vocab = toy_vocab()
    (folder / "config.json").write_text(json.dumps(_config(shape, len(vocab)), indent=2))
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(json.dumps(_tokenizer(vocab)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer", "do_lower_case": True})
    )
    save_file(_weights(shape, len(vocab), seed), folder / "model.safetensors", {"format": "pt"})
    return folder


def toy_vocab() -> list[str]:
    """Special tokens, whole words, and every ASCII character alone and as a continuation."""
    characters = string.ascii_lowercase + string.digits
    pieces = [
        *SPECIAL_TOKENS,
        *string.punctuation,
        *characters,
        *(f"##{character}" for character in characters),
        *WORDS,
    ]
    return list(dict.fromkeys(pieces))


def _config(shape: ToyShape, vocab_size: int) -> dict[str, object]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": shape.tokens_max,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "type_vocab_size": 2,
        "vocab_size": vocab_size,
    }


def _tokenizer(vocab: list[str]) -> dict[str, object]:
    def special(token: str) -> dict[str, object]:
        return {"SpecialToken": {"id": token, "type_id": 0}}

    text: dict[str, object] = {"Sequence": {"id": "A", "type_id": 0}}
    pair: dict[str, object] = {"Sequence": {"id": "B", "type_id": 1}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": index, "content": token, "special": True, **flags}
            for index, token in enumerate(SPECIAL_TOKENS)
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special("[CLS]"), text, special("[SEP]")],
            "pair": [special("[CLS]"), text, special("[SEP]"), pair, special("[SEP]")],
            "special_tokens": {
                token: {"id": token, "ids": [vocab.index(token)], "tokens": [token]}
                for token in ("[CLS]", "[SEP]")
            },
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": {token: index for index, token in enumerate(vocab)},
        },
    }


def _weights(shape: ToyShape, vocab_size: int, seed: int) -> dict[str, NDArray[np.float32]]:
    """Random tensors, scaled so that states differ between texts and attention is not uniform."""
    random = np.random.default_rng(seed)

    def normal(*size: int, std: float) -> NDArray[np.float32]:
        return (std * random.standard_normal(size)).astype(np.float32)

    def norm(name: str) -> dict[str, NDArray[np.float32]]:
        return {
            f"{name}.weight": 1 + normal(shape.hidden, std=0.1),
            f"{name}.bias": normal(shape.hidden, std=0.1),
        }

    def dense(name: str, inputs: int, outputs: int) -> dict[str, NDArray[np.float32]]:
        return {
            f"{name}.weight": normal(outputs, inputs, std=inputs**-0.5),
            f"{name}.bias": normal(outputs, std=0.1),
        }

    tensors = {
        "embeddings.word_embeddings.weight": normal(vocab_size, shape.hidden, std=1.0),
        "embeddings.position_embeddings.weight": normal(shape.tokens_max, shape.hidden, std=0.2),
        "embeddings.token_type_embeddings.weight": normal(2, shape.hidden, std=0.2),
        **norm("embeddings.LayerNorm"),
    }
    hidden, inner = shape.hidden, shape.intermediate
    for index in range(shape.layers):
        layer = f"encoder.layer.{index}"
        for name in ("query", "key", "value"):
            tensors |= dense(f"{layer}.attention.self.{name}", hidden, hidden)
        tensors |= dense(f"{layer}.attention.output.dense", hidden, hidden)
        tensors |= norm(f"{layer}.attention.output.LayerNorm")
        tensors |= dense(f"{layer}.intermediate.dense", hidden, inner)
        tensors |= dense(f"{layer}.output.dense", inner, hidden)
        tensors |= norm(f"{layer}.output.LayerNorm")
    return tensors
