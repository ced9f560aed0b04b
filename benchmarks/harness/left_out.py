"""General local encoders that know nothing of one topic: learned from the other four's documents.

Each is read from the folder that `SMILE_BENCH_ENCODERS` names, as `without-TOPIC.safetensors`,
where it is there, and distilled otherwise.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.harness.command import Run
from benchmarks.harness.encoders import FOLDER_VARIABLE
from benchmarks.harness.standin import backbone
from demo.news import News, body_of
from smile.errors import FailedPrecondition
from smile.model.skip import artifact
from smile.model.skip.distill.corpus import Pieces, cut
from smile.model.skip.distill.documents import Document
from smile.model.skip.distill.run import Distillation, Distilled, Job, Phase
from smile.model.skip.distill.settings import DistillSettings

BOUNDARY = 3
NEAR_SHARE = 0.6
QUICK_DOCUMENTS = 20


def without(run: Run, news: News, topic: str, folder: Path) -> Path:
    """The file of an encoder that has learned in one pass from all but a topic's documents; made in
    `folder` where it is not there.

    Raises:
        FailedPrecondition: the one that is there has learned from something else.
        DataCorrupted: it is no encoder.
    """
    others = [Document(body_of(one), one.topic) for one in news.train if one.topic != topic]
    if (named := os.environ.get(FOLDER_VARIABLE)) is not None:
        path = Path(named) / f"without-{topic}.safetensors"
        if path.exists():
            _check(path, others)
            return path
    settings = DistillSettings(
        BOUNDARY, epochs=1, near_share=NEAR_SHARE, threads=torch.get_num_threads()
    )
    some = others[: run.choose(len(others), QUICK_DOCUMENTS)]
    measured = [Document(body_of(one)) for one in news.held_out[: run.choose(100, 3)]]
    with tempfile.TemporaryDirectory(prefix="smile-bench-distilling-") as work:
        job = Job(
            backbone(), settings, _pieces(some), _pieces(measured), f"without {topic}", Path(work)
        )
        made = distilled(run, Distillation(job), f"distilling without {topic}")
    path = folder / f"without-{topic}.safetensors"
    path.write_bytes(made.data)
    return path


def distilled(run: Run, running: Distillation, what: str) -> Distilled:
    """Learns, with a bar of steps."""
    done = 0
    with run.steps(what, running.steps) as step:
        for event in running.events():
            if event.phase is Phase.LEARNING and event.done > done:
                done = event.done
                step()
    return running.result()


def _check(path: Path, others: Sequence[Document]) -> None:
    learned, wanted = artifact.read(path).facts.corpus_digest, _pieces(others).digest
    if learned != wanted:
        raise FailedPrecondition(
            f"{path} must have learned from the {len(others)} training documents of the other "
            f"topics (digest {wanted}), it has from others ({learned})"
        )


def _pieces(documents: Sequence[Document]) -> Pieces:
    settings = DistillSettings(BOUNDARY)
    most = min(settings.passage_tokens, backbone().shape.tokens_max)
    return cut(documents, backbone().tokenizer, most)
