"""What AdapterHub's library says. Run by a Python that has it; it needs transformers 4.

    python adapterhub_library.py record BACKBONE FOLDER       adapters, saved with their answers
    python adapterhub_library.py answer BACKBONE FOLDER...    answers of adapters saved in folders

`golden/` was recorded so over the backbone of `conftest.base_path`, with adapters 1.3.0.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from adapters import AutoAdapterModel, DoubleSeqBnConfig, SeqBnConfig, init
from transformers import AutoModelForSequenceClassification

TEXTS = ((2, 70, 71, 72, 3), (2, 90, 3), (2, *range(60, 110), 3))
CONFIGS = {
    "pfeiffer": SeqBnConfig(reduction_factor=4, leave_out=[0, 1]),
    "houlsby": DoubleSeqBnConfig(reduction_factor={"1": 8, "default": 16}),
    "scaled": SeqBnConfig(reduction_factor=16, scaling=0.7, leave_out=[1]),
    "feedforward": DoubleSeqBnConfig(reduction_factor=16, mh_adapter=False),
    "tagger": SeqBnConfig(reduction_factor=16),
    "static": SeqBnConfig(reduction_factor=16),
}


def record(backbone: str, folder: Path) -> None:
    answers = {}
    for number, (name, config) in enumerate(CONFIGS.items()):
        torch.manual_seed(number)
        model = _model(backbone, name, config)
        with torch.no_grad():
            for parameter, values in model.named_parameters():
                if ".adapters." in parameter:
                    values.normal_(std=0.2)
        (folder / name).mkdir(parents=True)
        model.save_adapter(str(folder / name), name, use_safetensors=True, with_head=True)
        for config_file in (folder / name).glob("*.json"):
            text = config_file.read_text().replace(backbone, "toy")
            config_file.write_text(text)
        answers[name] = _answers(model)
    (folder / "answers.json").write_text(json.dumps(answers))


def _model(backbone: str, name: str, config: Any) -> Any:
    if name == "static":
        model = AutoModelForSequenceClassification.from_pretrained(backbone, num_labels=2)
        init(model)
        model.add_adapter(name, config=config)
        model.set_active_adapters(name)
        return model
    model = AutoAdapterModel.from_pretrained(backbone)
    model.add_adapter(name, config=config)
    if name == "pfeiffer":
        model.add_classification_head(name, num_labels=2, layers=1, id2label={0: "no", 1: "yes"})
    elif name == "houlsby":
        model.add_classification_head(name, num_labels=3, layers=2)
    elif name == "feedforward":
        model.add_classification_head(name, num_labels=2, layers=1, use_pooler=True)
    elif name == "tagger":
        model.add_tagging_head(name, num_labels=3)
    model.set_active_adapters(name)
    return model


def answer(backbone: str, *folders: Path) -> None:
    found = []
    for folder in folders:
        model = AutoAdapterModel.from_pretrained(backbone)
        name = model.load_adapter(str(folder), use_safetensors=True, set_active=True)
        assert name, "an adapter"
        found.append(_answers(model))
    sys.stdout.write(json.dumps(found))


def _answers(model: Any) -> list[Any]:
    """Logits, or last states where there is no head, of each text."""
    model.eval()
    with torch.no_grad():
        found = [model(input_ids=torch.tensor([ids])) for ids in TEXTS]
    key = "logits" if "logits" in found[0] else "last_hidden_state"
    return [one[key][0].tolist() for one in found]


if __name__ == "__main__":
    command, place, *paths = sys.argv[1:]
    if command == "record":
        record(place, Path(paths[0]))
    else:
        answer(place, *map(Path, paths))
