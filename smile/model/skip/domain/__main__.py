"""Makes a domain: `python -m smile.model.skip.domain NAME --backbone B --encoder E --corpus ...`.

`smile domains create` runs this and shows what it says; see `smile.model.skip.distill.child`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from smile.errors import SmileError
from smile.logs import LogFormat, LogLevel, configure
from smile.model.backbone import Backbone
from smile.model.ngram_rows import RowDtype
from smile.model.skip import artifact
from smile.model.skip.distill.child import say, say_refused
from smile.model.skip.distill.documents import TextFiles, read_documents, split_documents
from smile.model.skip.distill.run import Event
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.domain.creation import (
    BUDGET_BYTES,
    Corpus,
    Creation,
    DomainWish,
    Kin,
    domain_settings,
)
from smile.model.sources import BackboneSource
from smile.representations import places
from smile.representations.build import Step
from smile.representations.delta import ALPHA, DIFFERENCE_MIN, DeltaRules
from smile.representations.manifest import GENERAL, TableManifest
from smile.standins import INCLUDED, encoder_file

SAY_EVERY_S = 0.5
LEARNING = ("epochs", "rate", "near_share", "passage_tokens", "held_out_share", "seed", "threads")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the process's exit code: 1 where it was refused."""
    asked = _parser().parse_args(arguments)
    configure("domains", LogLevel.WARNING, LogFormat.CONSOLE)
    try:
        wish, made = _create(asked)
        encoder = artifact.read(wish.place / places.ENCODER)
    except (SmileError, OSError) as error:
        say_refused(error)
        return 1
    measures = dict(encoder.facts.measures)
    say({"result": {"path": str(wish.place), "digest": made.digest, "measures": measures}})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smile.model.skip.domain", description=__doc__)
    parser.add_argument("name")
    parser.add_argument("--backbone", required=True, help="name=kind:location")
    parser.add_argument("--encoder", type=Path, help="the general one; default: what is included")
    parser.add_argument("--parent", default=GENERAL)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="*", default=[])
    parser.add_argument("--text-files", type=TextFiles, default=TextFiles.LINES)
    parser.add_argument("--alpha", type=float, default=ALPHA)
    parser.add_argument("--difference-min", type=float, default=DIFFERENCE_MIN)
    parser.add_argument("--budget-bytes", type=int, default=BUDGET_BYTES)
    parser.add_argument("--dtype", type=RowDtype, default=RowDtype.FLOAT16)
    for name in LEARNING:
        kind = float if name in ("rate", "near_share", "held_out_share") else int
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    return parser


def _create(asked: argparse.Namespace) -> tuple[DomainWish, TableManifest]:
    rules = DeltaRules(asked.alpha, asked.difference_min)
    wish = DomainWish(
        asked.name, asked.parent, asked.folder, rules, asked.budget_bytes, asked.dtype
    )
    source = BackboneSource.parse(asked.backbone)
    backbone = Backbone.load(source.locate(), source.name)
    encoder = encoder_file(asked.encoder or INCLUDED, backbone.name, backbone.digest)
    kin = Kin.of(wish.folder, wish.parent, encoder, backbone)
    given = {name: getattr(asked, name) for name in LEARNING if getattr(asked, name) is not None}
    settings = domain_settings(kin.file, **{"threads": os.cpu_count() or 1, **given})
    corpus = _corpus(asked, settings)
    return wish, Creation(wish, kin, corpus, backbone, settings).run(_Events(), _Progress())


def _corpus(asked: argparse.Namespace, settings: DistillSettings) -> Corpus:
    documents = read_documents(asked.corpus, asked.text_files)
    name = ", ".join(path.name for path in asked.corpus)
    if not asked.test:
        return Corpus(name, *split_documents(documents, settings.held_out_share, settings.seed))
    held = read_documents(asked.test, asked.text_files)
    own = {document.text for document in held}
    return Corpus(name, [one for one in documents if one.text not in own], held)


class _Events:
    """Says how far learning is, not too often."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, event: Event) -> None:
        if event.done == event.total or time.monotonic() - self._said >= SAY_EVERY_S:
            say({"event": asdict(event)})
            self._said = time.monotonic()


class _Progress:
    """Says how far counting and writing are, not too often."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, step: Step, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._said >= SAY_EVERY_S:
            say({"step": step, "done": done, "total": total})
            self._said = time.monotonic()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it goes on from its checkpoint next time
    sys.exit(main())
