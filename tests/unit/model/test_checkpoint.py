"""What backbone directories are accepted, what they are called, and why others are refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from smile.errors import DataCorrupted, FailedPrecondition, InvalidArgument, SmileError
from smile.model.backbone import Backbone
from smile.model.checkpoint import Family, describe
from smile.model.toy import ToyShape, write_toy_backbone


@pytest.fixture
def folder(toy_path: Path, tmp_path: Path) -> Path:
    """A copy of the toy to spoil."""
    for file in toy_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def refused(folder: Path, error: type[SmileError], match: str) -> None:
    with pytest.raises(error, match=match):
        describe(folder)


def test_minilm_is_described(minilm_path: Path) -> None:
    info = describe(minilm_path)
    assert (info.family, info.vocab, info.tokens_max) == (Family.BERT, 30522, 512)
    assert (info.shape.layers, info.shape.hidden, info.shape.heads) == (6, 384, 12)
    assert info.shape.intermediate == 1536
    assert info.parameters == 22_713_216 - 384 * 384 - 384  # the model card's, less the pooler
    assert info.bytes == 4 * info.parameters
    assert len(info.digest) == 64


def test_roberta_is_described(roberta_path: Path) -> None:
    info = describe(roberta_path)
    assert (info.family, info.tokens_max) == (Family.ROBERTA, 64)


def test_describing_needs_no_torch(toy_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from smile.model import initial, layout, sources, weights, toy\n"
        f"info = sources.describe(Path({str(toy_path)!r}))\n"
        "assert info.shape.hidden == 32\n"
        "unwanted = {'torch', 'transformers', 'tokenizers'} & set(sys.modules)\n"
        "sys.exit(str(unwanted) if unwanted else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_digest_follows_every_file_that_decides_answers(folder: Path) -> None:
    digests = [describe(folder).digest]

    def changed() -> bool:
        digests.append(describe(folder).digest)
        return digests[-1] not in digests[:-1]

    configure(folder, transformers_version="9.9", architectures=["Other"])
    assert not changed()
    configure(folder, layer_norm_eps=1e-6)
    assert changed()
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    assert changed()
    write = folder / "model.safetensors"
    write.write_bytes(write.read_bytes()[:-1] + b"\x01")
    assert changed()
    (folder / "tokenizer.json").unlink()
    assert changed()
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert changed()


def test_the_toy_is_the_same_for_the_same_seed(tmp_path: Path, toy_path: Path) -> None:
    assert describe(write_toy_backbone(tmp_path / "a")).digest == describe(toy_path).digest
    assert describe(write_toy_backbone(tmp_path / "b", seed=1)).digest != describe(toy_path).digest


def test_a_toy_of_another_shape_loads(tmp_path: Path) -> None:
    wanted = ToyShape(layers=2, hidden=12, heads=3, intermediate=20, tokens_max=40)
    shape = Backbone.load(write_toy_backbone(tmp_path, shape=wanted), "small").shape
    assert (shape.layers, shape.hidden, shape.heads) == (2, 12, 3)
    assert (shape.intermediate, shape.tokens_max) == (20, 40)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": "gpt2"}, "model_type must be one of bert, roberta, got 'gpt2'"),
        ({"model_type": ["bert"]}, "model_type must be one of"),
        ({"model_type": None}, "model_type must be one of"),
        ({"is_decoder": True}, "a decoder is not supported"),
        ({"add_cross_attention": True}, "a decoder is not supported"),
        ({"position_embedding_type": "relative_key"}, "must be 'absolute', got 'relative_key'"),
        ({"hidden_act": "swish"}, "hidden_act must be one of gelu.* got 'swish'"),
    ],
)
def test_other_architectures_are_refused(
    folder: Path, changes: dict[str, object], match: str
) -> None:
    configure(folder, **changes)
    refused(folder, InvalidArgument, match)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"hidden_size": 0}, "hidden_size must be an integer >= 1, got 0"),
        ({"hidden_size": "32"}, "hidden_size must be an integer >= 1, got '32'"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be an integer"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not a multiple of num_attention_heads 5"),
        ({"max_position_embeddings": 2}, "max_position_embeddings must be an integer >= 3"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must be between 0 and 1, got 0"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps must be between 0 and 1, got nan"),
        ({"hidden_size": 64}, r"word_embeddings\.weight' must be \[350, 64\], got \[350, 32\]"),
        ({"num_hidden_layers": 5}, r"no tensor 'encoder\.layer\.4\."),
    ],
)
def test_configurations_that_contradict_themselves_or_the_weights(
    folder: Path, changes: dict[str, object], match: str
) -> None:
    configure(folder, **changes)
    refused(folder, DataCorrupted, match)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, "\ud800"])
def test_configurations_that_are_no_json_object(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(folder, DataCorrupted, r"config\.json is not")


@pytest.mark.parametrize(
    ("missing", "match"),
    [("config.json", r"no config\.json"), ("model.safetensors", r"no model\.safetensors in")],
)
def test_missing_files_are_named(folder: Path, missing: str, match: str) -> None:
    (folder / missing).unlink()
    refused(folder, FailedPrecondition, match)


def test_a_missing_tokenizer_is_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    describe(folder)  # vocab.txt is enough
    (folder / "vocab.txt").unlink()
    refused(folder, FailedPrecondition, r"no tokenizer\.json or vocab\.txt")


def test_pickled_and_split_weights_are_refused_with_the_reason(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    refused(folder, FailedPrecondition, "is a pickle and is never read: convert it")
    (folder / "model.safetensors.index.json").write_text("{}")
    refused(folder, FailedPrecondition, "split over several files")


def test_weights_that_are_no_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    refused(folder, DataCorrupted, "is not a safetensors file")


def test_weights_of_integers_are_refused(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["embeddings.LayerNorm.bias"] = np.zeros(32, np.int32)
    save_file(tensors, folder / "model.safetensors")
    refused(folder, DataCorrupted, r"LayerNorm\.bias' must be one of F32, F16, BF16, got I32")
