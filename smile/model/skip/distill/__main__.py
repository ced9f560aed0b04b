"""Distils a local encoder: `python -m smile.model.skip.distill BACKBONE --boundary K ...`.

`smile backbones distill` runs this and shows what it says: one JSON object a line on standard
output, of progress while it runs and of the result or the error at its end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path

from smile.errors import SmileError
from smile.logs import LogFormat, LogLevel, configure
from smile.model.backbone import Backbone
from smile.model.skip import artifact
from smile.model.skip.distill.child import alone, say, say_refused
from smile.model.skip.distill.corpus import Pieces, cut
from smile.model.skip.distill.documents import TextFiles, read_documents, split_documents
from smile.model.skip.distill.picture import curve_svg
from smile.model.skip.distill.run import Distillation, Distilled, Job
from smile.model.skip.distill.settings import DistillSettings
from smile.model.sources import BackboneSource

SAY_EVERY_S = 0.5
WORK_SUFFIX = ".work"
CURVE_SUFFIX = ".curve.json"
PICTURE_SUFFIX = ".curve.svg"


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the process's exit code: 1 where it was refused."""
    asked = _parser().parse_args(arguments)
    configure("distill", LogLevel.WARNING, LogFormat.CONSOLE)
    try:
        _distil(asked)
    except (SmileError, OSError) as error:
        say_refused(error)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m smile.model.skip.distill", description=__doc__)
    parser.add_argument("backbone", help="name=kind:location")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="*", default=[])
    parser.add_argument("--text-files", type=TextFiles, default=TextFiles.LINES)
    parser.add_argument("--parent", type=Path, help="an encoder to begin as")
    parser.add_argument("--output", type=Path, required=True)
    for one in fields(DistillSettings):
        if one.name == "threads":
            parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
            continue
        kind = int if one.default is MISSING else type(one.default)
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default)
    return parser


def _distil(asked: argparse.Namespace) -> None:
    settings = DistillSettings(**{f.name: getattr(asked, f.name) for f in fields(DistillSettings)})
    source = BackboneSource.parse(asked.backbone)
    backbone = Backbone.load(source.locate(), source.name)
    learned, held_out = _corpus(asked, settings, backbone)
    parent = None if asked.parent is None else artifact.read(asked.parent)
    output: Path = asked.output
    work = output.with_name(output.name + WORK_SUFFIX)
    work.mkdir(parents=True, exist_ok=True)
    corpus = ", ".join(path.name for path in asked.corpus)
    job = Job(backbone, settings, learned, held_out, corpus, work, parent)
    say({"texts": len(learned.ids), "tokens": learned.tokens, "held_out": len(held_out.ids)})
    with alone(work):
        done = _run(Distillation(job))
        _publish(output, done)
        shutil.rmtree(work)
    say({"result": _of_result(output, done)})


def _run(running: Distillation) -> Distilled:
    said = 0.0
    for event in running.events():
        if time.monotonic() - said >= SAY_EVERY_S or event.done == event.total:
            say({"event": asdict(event)})
            said = time.monotonic()
    return running.result()


def _corpus(
    asked: argparse.Namespace, settings: DistillSettings, backbone: Backbone
) -> tuple[Pieces, Pieces]:
    """(learned from, held out)."""
    documents = read_documents(asked.corpus, asked.text_files)
    if asked.test:
        held = read_documents(asked.test, asked.text_files)
        own = {document.text for document in held}
        documents = [document for document in documents if document.text not in own]
    else:
        documents, held = split_documents(documents, settings.held_out_share, settings.seed)
    most = min(settings.passage_tokens, backbone.shape.tokens_max)
    tokenizer = backbone.tokenizer
    return cut(documents, tokenizer, most), cut(held, tokenizer, most)


def _publish(output: Path, done: Distilled) -> None:
    """The curve and its picture, then the file: whoever finds the file finds its curve."""
    curve = output.with_name(output.name + CURVE_SUFFIX)
    curve.write_text(json.dumps([asdict(point) for point in done.curve]) + "\n")
    output.with_name(output.name + PICTURE_SUFFIX).write_text(curve_svg(done.curve, output.name))
    part = output.with_name(output.name + ".part")
    with part.open("wb") as file:
        file.write(done.data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(output)


def _of_result(output: Path, done: Distilled) -> dict[str, object]:
    facts = asdict(done.file.facts)
    return {
        "path": str(output),
        "digest": done.file.digest,
        "bytes": done.file.bytes,
        "parameters": done.file.facts.form.parameters,
        "losses": [point.loss for point in done.curve],
        **facts,
    }


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # it goes on from its checkpoint next time
    sys.exit(main())
