"""`README.md` of an export: what it is and how to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from smile.formats import ExportFormat
from smile.model.port.heads import Architecture, architecture_of, class_name
from smile.model.port.values import ExportedModule
from smile.model.specs import PetKind, Pooling, Task

NATURAL: Mapping[PetKind, ExportFormat] = {
    PetKind.NONE: ExportFormat.HUGGINGFACE,
    PetKind.PFEIFFER: ExportFormat.ADAPTERHUB,
    PetKind.HOULSBY: ExportFormat.ADAPTERHUB,
    PetKind.LORA: ExportFormat.PEFT,
    PetKind.BITFIT: ExportFormat.HUGGINGFACE,
    PetKind.DIFF_PRUNING: ExportFormat.HUGGINGFACE,
    PetKind.MASK_BERT: ExportFormat.HUGGINGFACE,
    PetKind.FULL: ExportFormat.HUGGINGFACE,
}
MEANS = """
This head pools by mean, which no class of transformers does for this encoder. It is stored as a
token classifier: the mean of its logits over a text's tokens, special tokens included, is the
text's logits.

```python
mask = inputs["attention_mask"][..., None]
logits = (model(**inputs).logits * mask).sum(1) / mask.sum(1)
```
"""


def natural(kind: PetKind) -> ExportFormat:
    """The format whose ecosystem a kind is at home in."""
    return NATURAL[kind]


def base_model(module: ExportedModule) -> str:
    """How a folder names its backbone: where its files are, else what it is called here."""
    return module.spec.backbone if module.folder is None else str(module.folder)


def write(folder: Path, module: ExportedModule, made: ExportFormat) -> None:
    """Writes the card."""
    spec = module.spec
    lines = [
        f"# {module.title}",
        "",
        f"Exported from {module.name}: {spec.head.task}, {spec.pet.kind}, on backbone",
        f"`{spec.backbone}` (digest {spec.backbone_digest}).",
        "",
        "```python",
        *LOADING[made](module),
        "```",
    ]
    text = "\n".join(lines) + "\n"
    if spec.head.task is Task.SEQUENCE_CLASSIFICATION and spec.head.pooling is Pooling.MEAN:
        text += "" if made is ExportFormat.SMILE else MEANS
    (folder / "README.md").write_text(text, encoding="utf-8")


def _auto(module: ExportedModule) -> str:
    architecture = architecture_of(module.spec.head)
    return f"AutoModel{architecture}" if architecture is not Architecture.MODEL else "AutoModel"


def _peft(module: ExportedModule) -> list[str]:
    labels = len(module.spec.head.labels)
    count = f", num_labels={labels}" if labels else ""
    return [
        "from peft import PeftModel",
        f"from transformers import {_auto(module)}",
        "",
        f'base = {_auto(module)}.from_pretrained("{base_model(module)}"{count})',
        'model = PeftModel.from_pretrained(base, ".")',
    ]


def _adapterhub(module: ExportedModule) -> list[str]:
    return [
        "from adapters import AutoAdapterModel",
        "",
        f'model = AutoAdapterModel.from_pretrained("{base_model(module)}")',
        f'model.load_adapter(".", use_safetensors=True, set_active=True)  # {module.title}',
    ]


def _huggingface(module: ExportedModule) -> list[str]:
    name = class_name(architecture_of(module.spec.head), module.family)
    return [f"from transformers import {name}", "", f'model = {name}.from_pretrained(".")']


def _smile(module: ExportedModule) -> list[str]:
    backbone = module.spec.backbone
    return [
        "import smile",
        "",
        f'smile.Client().import_vplm("{module.title}", ".", backbone="{backbone}")',
    ]


LOADING = {
    ExportFormat.PEFT: _peft,
    ExportFormat.ADAPTERHUB: _adapterhub,
    ExportFormat.HUGGINGFACE: _huggingface,
    ExportFormat.SMILE: _smile,
}
