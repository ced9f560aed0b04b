"""`smile infer | infer-fanout`: one document for texts given, JSON Lines for a stream of them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from smile.cli.command import Session, command
from smile.cli.output import Json, error_json, error_sentence, short, table, to_json, write_json
from smile.client.chunks import unreadable
from smile.client.options import FanoutOptions, InferOptions
from smile.errors import InvalidArgument, SmileError, TextEmpty
from smile.resources import (
    Classification,
    Embedding,
    Exactness,
    FanoutAnswer,
    InferResult,
    Materialization,
    Prediction,
    TokenClassification,
)

TEXT_CHARS_SHOWN = 60
NUMBERS_SHOWN = 6
STDIN = Path("-")
MATERIALIZED = typer.Option(
    "--materialized/--exact",
    help="Look up the lower layers, or compute every layer. Default: as rented, else exact.",
)


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How to ask."""

    alias: Annotated[str, typer.Option(help="Alias to follow. Default: serving.")] = ""
    version: Annotated[int | None, typer.Option(help="Ask this version.")] = None
    truncate: Annotated[bool, typer.Option(help="Cut texts that are too long.")] = False
    top_k: Annotated[int, typer.Option(help="Scores of this many labels; 0: all.")] = 0
    routing_key: Annotated[
        str, typer.Option(help="Equal keys get the same version of a split alias.")
    ] = ""
    materialized: Annotated[bool | None, MATERIALIZED] = None


@dataclass(frozen=True, slots=True)
class FanoutAsk:
    """How to ask many."""

    alias: Annotated[str, typer.Option(help="Alias to follow. Default: serving.")] = ""
    truncate: Annotated[bool, typer.Option(help="Cut a text that is too long.")] = False
    top_k: Annotated[int, typer.Option(help="Scores of this many labels; 0: all.")] = 0
    routing_key: Annotated[
        str, typer.Option(help="Equal keys get the same version of a split alias.")
    ] = ""
    materialized: Annotated[bool | None, MATERIALIZED] = None


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("infer")(command(infer))
    app.command("infer-fanout")(command(infer_fanout))


def infer(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the vPLM.")],
    ask: AskOptions,
    texts: Annotated[list[str] | None, typer.Argument(help="Texts. None: see --file.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="One text a line; '-' or no texts: standard input.")
    ] = None,
) -> None:
    """Ask a vPLM. Texts given on the command line are answered together, as one JSON document;
    texts from a file or from standard input as they come, as JSON Lines."""
    options = InferOptions(
        alias=ask.alias, truncate=ask.truncate, top_k=ask.top_k, routing_key=ask.routing_key
    )
    if ask.version is not None:
        options["version"] = ask.version
    if ask.materialized is not None:
        options["exactness"] = _exactness(ask.materialized)
    if texts:
        if file is not None:
            raise typer.BadParameter("give texts or --file, not both")
        return _show(session, texts, session.client.infer(vplm, texts, **options))
    asked: list[str] = []
    predictions = session.client.infer_many(vplm, _kept(_lines(file or STDIN), asked), **options)
    _stream(session, predictions, asked)


def infer_fanout(
    session: Session,
    text: Annotated[str, typer.Argument(help="The text.")],
    vplms: Annotated[
        list[str], typer.Argument(help="Ids of vPLMs of one backbone, each with @alias if wanted.")
    ],
    ask: FanoutAsk,
) -> None:
    """Ask many vPLMs about one text; what they have in common is computed once. Exits as the first
    vPLM that could not answer, after showing what the others said."""
    options = FanoutOptions(
        alias=ask.alias, truncate=ask.truncate, top_k=ask.top_k, routing_key=ask.routing_key
    )
    if ask.materialized is not None:
        options["exactness"] = _exactness(ask.materialized)
    result = session.client.infer_fanout(text, vplms, **options)
    if session.json:
        entries = [_entry_json(v, one) for v, one in zip(vplms, result.entries, strict=True)]
        write_json({"text": text, "entries": entries, "timings": to_json(result.timings)})
    else:
        rows = [[v, *_entry_cells(one)] for v, one in zip(vplms, result.entries, strict=True)]
        session.out.print(table(["vplm", "answer", "score>", "version>"], rows))
    _ = result.answers


def _entry_json(vplm: str, entry: FanoutAnswer | SmileError) -> Json:
    if isinstance(entry, SmileError):
        return {"vplm": vplm, "error": error_json(entry)["error"]}
    return {
        "vplm": vplm,
        "prediction": _plain(entry.prediction),
        "version": entry.version,
        "digest": entry.digest,
        "origin": str(entry.origin),
        "exactness": str(entry.exactness),
        "materialization": to_json(entry.materialization),
    }


def _entry_cells(entry: FanoutAnswer | SmileError) -> list[str]:
    if isinstance(entry, SmileError):
        return [error_sentence(entry), "", ""]
    return [*_cells(entry.prediction), short(entry.version)]


def _lines(path: Path) -> Iterator[str]:
    """The lines of a file as texts. Raises `InvalidArgument`, `TextEmpty`."""
    where = "standard input" if path == STDIN else str(path)
    try:
        with sys.stdin if path == STDIN else path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                text = line.rstrip("\r\n")
                if not text.strip():
                    raise TextEmpty(f"line {number} of {where} is empty")
                yield text
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{where} is not UTF-8: {error}", reason="TEXT_NOT_UTF8") from error


def _kept(texts: Iterable[str], asked: list[str]) -> Iterator[str]:
    for text in texts:
        asked.append(text)
        yield text


def _stream(session: Session, predictions: Iterator[Prediction], asked: list[str]) -> None:
    for index, prediction in enumerate(predictions):
        text, asked[index] = asked[index], ""
        if session.json:
            write_json({"text": text, **_plain(prediction)}, indent=None)
        else:
            sys.stdout.write("\t".join([*_cells(prediction), text]) + "\n")


def _show(session: Session, texts: list[str], result: InferResult) -> None:
    if session.json:
        document = to_json(result)
        assert isinstance(document, dict)
        document["predictions"] = [_plain(prediction) for prediction in result.predictions]
        document["exactness"] = str(result.exactness)
        return write_json(document)
    rows = [
        [_cut(text), *_cells(prediction), "cut" if prediction.truncated else ""]
        for text, prediction in zip(texts, result.predictions, strict=True)
    ]
    session.out.print(table(["text", "answer", "score>", ""], rows))
    timings = result.timings
    session.note(
        f"{result.version} ({result.origin}) in {1000 * timings.total_s:.1f} ms, "
        f"batch of {timings.batch_texts} texts for {timings.batch_vplms} vPLMs"
        f"{_looked_up(result.materialization)}"
    )


def _looked_up(materialization: Materialization | None) -> str:
    if materialization is None:
        return ""
    share = 100 * materialization.found_share
    domain = f" with {materialization.domain}'s rows" if materialization.domain else ""
    return f"; materialised{domain}, {share:.0f} % of {materialization.ngrams} n-grams found"


def _exactness(materialized: bool) -> Exactness:
    return Exactness.MATERIALIZED if materialized else Exactness.EXACT


def _plain(prediction: Prediction) -> dict[str, Json]:
    """A prediction as JSON, its kind's fields beside the others."""
    fields = to_json(prediction.result)
    assert isinstance(fields, dict)
    return {
        **fields,
        "truncated": prediction.truncated,
        "token_count": prediction.token_count,
    }


def _cells(prediction: Prediction) -> list[str]:
    """Answer and score."""
    match prediction.result:
        case Classification(label, score, _):
            return [label, f"{score:.4f}"]
        case TokenClassification(tokens):
            return [" ".join(f"{token.word}/{token.label}" for token in tokens), ""]
        case Embedding(values):
            shown = ", ".join(f"{value:.3f}" for value in values[:NUMBERS_SHOWN])
            return [f"{len(values)} numbers: {shown}, ...", ""]


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARS_SHOWN else text[: TEXT_CHARS_SHOWN - 1] + "…"
