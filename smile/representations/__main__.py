"""Builds a table: `python -m smile.representations --backbone B --encoder E --corpus PATH...`.

`smile tables build` runs this and shows what it says: one JSON object a line on standard output,
of progress while it runs and of the result or the error at its end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from smile.errors import SmileError, Unavailable
from smile.logs import LogFormat, LogLevel, configure
from smile.model.backbone import Backbone
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.skip.distill.documents import TextFiles, read_documents, served_texts
from smile.model.skip.rows import EncoderRows
from smile.model.sources import BackboneSource
from smile.model.tokenizer import TextTokenizer
from smile.representations.build import Step, TableWish, build
from smile.representations.fallback import KINDS
from smile.representations.manifest import TableManifest
from smile.standins import INCLUDED, encoder_file

SAY_EVERY_S = 0.2


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the process's exit code: 1 where it was refused."""
    asked = _parser().parse_args(arguments)
    configure("tables", LogLevel.WARNING, LogFormat.CONSOLE)
    try:
        made = _build(asked)
    except (SmileError, OSError) as caught:
        error = caught if isinstance(caught, SmileError) else Unavailable(f"files: {caught}")
        _say(
            {
                "error": {
                    "class": type(error).__name__,
                    "reason": error.reason,
                    "message": error.message,
                    "metadata": error.metadata,
                }
            }
        )
        return 1
    _say({"result": {"digest": made.digest, "path": str(asked.output.resolve())}})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smile.representations", description=__doc__)
    parser.add_argument("--backbone", required=True, help="name=kind:location")
    parser.add_argument("--encoder", type=Path, default=INCLUDED)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--text-files", type=TextFiles, default=TextFiles.LINES)
    parser.add_argument("--budget-bytes", type=int, required=True)
    parser.add_argument("--dtype", type=RowDtype, default=RowDtype.FLOAT16)
    parser.add_argument("--output", type=Path, required=True)
    return parser


def _build(asked: argparse.Namespace) -> TableManifest:
    documents = read_documents(asked.corpus, asked.text_files)
    source = BackboneSource.parse(asked.backbone)
    backbone = Backbone.load(source.locate(), source.name)
    encoder = EncoderRows.of(encoder_file(asked.encoder, source.name, backbone.digest), backbone)
    wish = TableWish(
        format=RowFormat(asked.dtype, encoder.origin.width),
        budget_bytes=asked.budget_bytes,
        vocab=encoder.vocab,
        kinds=KINDS[encoder.policy],
    )
    ids = _Ids(backbone.tokenizer)
    return build(
        asked.output, served_texts(documents), ids, encoder, encoder.outside, wish, _Progress()
    )


class _Ids:
    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        return [text.ids for text in self._tokenizer.encode(texts, truncate=True)]


class _Progress:
    """Says how far it is, not too often."""

    def __init__(self) -> None:
        self._said = 0.0

    def __call__(self, step: Step, done: int, total: int) -> None:
        if done == total or time.monotonic() - self._said >= SAY_EVERY_S:
            _say({"step": step, "done": done, "total": total})
            self._said = time.monotonic()


def _say(what: Mapping[str, object]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
