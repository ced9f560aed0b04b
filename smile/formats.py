"""Folders that models travel in, between SMILE and other libraries."""

from __future__ import annotations

import enum


class ExportFormat(enum.StrEnum):
    """Folders that other libraries read, and our own."""

    PEFT = "peft"  # LoRA: https://huggingface.co/docs/peft
    ADAPTERHUB = "adapterhub"  # bottleneck adapters: https://docs.adapterhub.ml
    HUGGINGFACE = "huggingface"  # a whole model: https://huggingface.co/docs/transformers
    SMILE = "smile"  # the stored bytes and their spec
