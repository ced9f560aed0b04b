"""A real backbone in and out: MiniLM, its own pooler, real words."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from smile.formats import ExportFormat
from smile.model import port
from smile.model.backbone import Backbone
from smile.model.packing import pack
from smile.model.reference import VplmModule
from smile.model.specs import (
    DType,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Pooling,
    Projection,
    Task,
)
from tests.unit.model.port.port_world import TOLERANCE, assert_same, exported, target_of

TEXTS = ["Shares rose in London on Friday, and fell in Paris", "Goal!", "A slow train " * 40]
HEAD = HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("business", "sport"), Pooling.CLS)
LORA = PetSpec(PetKind.LORA, 3, 8, 4.0, (Projection.QUERY, Projection.VALUE))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def ours(backbone: Backbone, spec: ModuleSpec, module: port.ExportedModule) -> Tensor:
    texts = backbone.tokenizer.encode(TEXTS, truncate=False)
    with torch.no_grad():
        answers: Tensor = VplmModule(backbone, spec, module.tensors)(
            pack([text.ids for text in texts])
        )
    return answers


@pytest.mark.parametrize("made", [ExportFormat.PEFT, ExportFormat.HUGGINGFACE])
def test_lora_on_minilm_answers_alike_in_its_own_library(
    minilm: Backbone, minilm_path: Path, tmp_path: Path, made: ExportFormat
) -> None:
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    spec = ModuleSpec("minilm", minilm.digest, LORA, HEAD, DType.FLOAT16)
    module = exported(minilm, spec, minilm_path)
    out = tmp_path / "out"
    port.write(module, out, made)
    if made is ExportFormat.PEFT:
        model = AutoPeftModelForSequenceClassification.from_pretrained(out, num_labels=2)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(out)
        assert model.config.label2id == {"business": 0, "sport": 1}
    tokenizer = AutoTokenizer.from_pretrained(out if made != ExportFormat.PEFT else minilm_path)
    with torch.no_grad():
        theirs = model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(ours(minilm, spec, module), theirs, rtol=0, atol=TOLERANCE)
    if made is ExportFormat.PEFT:
        back = port.read(out, target_of(minilm, None))
        assert back.spec == spec
        assert_same(back.tensors, module.tensors)
