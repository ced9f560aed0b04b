"""Full fine-tuning, or PEFT's LoRA, with Hugging Face's Trainer as its documentation shows it:
batches padded to their longest text, AdamW, a linear schedule, evaluation after every epoch.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np
import peft
import torch
import torch._dynamo  # optimizers import it at their first step
import transformers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from benchmarks.trainers.protocol import Clock, Lesson, only_answers, tell

PEFT = "peft"
RANK = 8
EVALUATED = 64  # texts at a time


Row = Mapping[str, object]


class Rows(torch.utils.data.Dataset[Row]):
    """Tokenised texts and their classes."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        classes: Sequence[int],
        tokens_max: int,
    ) -> None:
        encoded = tokenizer(list(texts), truncation=True, max_length=tokens_max)
        self._rows = [
            {"input_ids": ids, "labels": label}
            for ids, label in zip(encoded["input_ids"], classes, strict=True)
        ]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Row:
        return self._rows[index]


class _Telling(TrainerCallback):
    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **told: Mapping[str, float],
    ) -> None:
        self._clock.epoch(float(told["metrics"]["eval_accuracy"]))


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    """The share of rows whose highest logit is their class's."""
    chosen = np.asarray(predicted.predictions).argmax(-1)
    return {"accuracy": float((chosen == np.asarray(predicted.label_ids)).mean())}


def load(lesson: Lesson, kind: str) -> torch.nn.Module:
    """The model, its weights in memory."""
    torch.manual_seed(lesson.seed)
    model: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(
        lesson.model, num_labels=len(lesson.labels)
    )
    if kind == PEFT:
        config = peft.LoraConfig(
            task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"]
        )
        model = peft.get_peft_model(cast("PreTrainedModel", model), config)
    for parameter in model.parameters():
        parameter.sum()  # reads pages that were only mapped
    return model


def main(lesson: Lesson, kind: str, scratch: str) -> dict[str, object]:
    model = load(lesson, kind)
    tokenizer = AutoTokenizer.from_pretrained(lesson.model)
    arguments = TrainingArguments(
        scratch,
        num_train_epochs=lesson.epochs,
        learning_rate=lesson.learning_rate,
        per_device_train_batch_size=lesson.batch,
        per_device_eval_batch_size=EVALUATED,
        eval_strategy="epoch",
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        seed=lesson.seed,
    )
    clock = Clock.start()
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Rows(tokenizer, lesson.texts, lesson.classes, lesson.tokens_max),
        eval_dataset=Rows(
            tokenizer, lesson.held_out_texts, lesson.held_out_classes, lesson.tokens_max
        ),
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
        callbacks=[_Telling(clock)],
    )
    trainer.train()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {**clock.figures(), "trained_parameters": trained, **versions}


if __name__ == "__main__":
    lines = only_answers()
    with tempfile.TemporaryDirectory(prefix="smile-bench-") as folder:
        tell(main(Lesson.read(sys.argv[1]), sys.argv[2], folder), lines)
