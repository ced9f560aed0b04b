"""`smile backbones [distill | encoder]`: what vPLMs are built on, and local encoders for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from smile.cli.children import bars, given, result_of
from smile.cli.command import Session, command
from smile.cli.output import Json, facts, size, to_json, write_json
from smile.cli.tables import source_of
from smile.cli.vplms import backbones as list_backbones
from smile.errors import FailedPrecondition
from smile.model.skip.policy import MissPolicy, RowKind

if TYPE_CHECKING:
    from smile.model.skip.artifact import EncoderFile
    from smile.model.skip.form import EncoderForm

DISTILLER = "smile.model.skip.distill"
PHASES = {"teacher": "the teacher's states", "learning": "learning", "measuring": "measuring"}
MISSES = {
    MissPolicy.COMPUTE: "computed",
    MissPolicy.SHORTER: "served by shorter n-grams' rows",
}
SPARKS = "▁▂▃▄▅▆▇█"
SPARKS_MAX = 60
LIST_COMMAND = "list"


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """What to learn from and to measure on."""

    corpus: Annotated[
        list[Path],
        typer.Option(
            help="File or folder of .txt, .csv or .jsonl, a document a line or row; may be "
            "repeated. Column 'text', and 'label' where there are classes."
        ),
    ]
    test: Annotated[
        list[Path] | None,
        typer.Option(help="Documents to measure on. Default: a twentieth of the corpus."),
    ] = None
    whole_files: Annotated[
        bool, typer.Option("--whole-files", help="A .txt file is one document, not one a line.")
    ] = False


@dataclass(frozen=True, slots=True)
class LearningOptions:
    """How to learn. Every default is the distiller's own."""

    epochs: Annotated[int | None, typer.Option(help="Passes over the corpus.")] = None
    seed: Annotated[int | None, typer.Option(help="Of weights and order.")] = None
    rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    near_share: Annotated[
        float | None,
        typer.Option(help="Share of the epochs, the first, that look at the boundary alone."),
    ] = None
    scores_weight: Annotated[
        float | None, typer.Option(help="Of attention scores beside states.")
    ] = None
    passage_tokens: Annotated[int | None, typer.Option(help="Longest text learned from.")] = None
    threads: Annotated[int | None, typer.Option(help="Default: as many as cores.")] = None
    parent: Annotated[
        Path | None, typer.Option(help="Local encoder to begin as. Default: random numbers.")
    ] = None


@dataclass(frozen=True, slots=True)
class WidthOptions:
    """The encoder's sizes. Every default is the distiller's own."""

    first: Annotated[int | None, typer.Option(help="Of the sum of three words.")] = None
    width: Annotated[int | None, typer.Option(help="Of the layer after it.")] = None
    after: Annotated[int | None, typer.Option(help="Of the network behind the merge.")] = None
    context: Annotated[int | None, typer.Option(help="Of what a text's tokens share there.")] = None


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What makes a row, and what serves an n-gram that no table has. Every default is the
    distiller's own."""

    rows: Annotated[
        RowKind | None,
        typer.Option(help="A network over three words, or the backbone's layers over them."),
    ] = None
    policy: Annotated[
        MissPolicy | None,
        typer.Option(help="Compute rows that no table has, or serve shorter n-grams' instead."),
    ] = None
    dropout: Annotated[
        float | None, typer.Option(help="How often a shorter n-gram is learned from, there.")
    ] = None


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Backbones, and local encoders for them.")
    group.callback(invoke_without_command=True)(command(_list_alone))
    group.command(LIST_COMMAND)(command(list_backbones))
    group.command("distill")(command(distill, platform=False))
    group.command("encoder")(command(encoder, platform=False))
    app.add_typer(group, name="backbones")


def distill(
    session: Session,
    backbone: Annotated[
        str, typer.Argument(help="A name of SMILE_BACKBONES, or 'name=dir:/path' and the like.")
    ],
    boundary: Annotated[int, typer.Option(help="First layer that is still computed.")],
    data: CorpusOptions,
    learning: LearningOptions,
    widths: WidthOptions,
    misses: PolicyOptions,
    to: Annotated[
        Path | None, typer.Option(help="The encoder's file. Default: BACKBONE-bK.safetensors.")
    ] = None,
) -> None:
    """Learn a local encoder that stands for the layers below the boundary.

    Interrupted, the same command goes on where it was and ends with the same numbers.
    """
    source = source_of(backbone)
    target = to or Path(f"{source.name}-b{boundary}.safetensors")
    arguments = [
        str(source),
        f"--boundary={boundary}",
        f"--output={target}",
        f"--text-files={'whole' if data.whole_files else 'lines'}",
        *given(
            epochs=learning.epochs,
            seed=learning.seed,
            rate=learning.rate,
            near_share=learning.near_share,
            scores_weight=learning.scores_weight,
            passage_tokens=learning.passage_tokens,
            threads=learning.threads,
            parent=learning.parent,
            first=widths.first,
            middle=widths.width,
            after=widths.after,
            context=widths.context,
            rows=misses.rows,
            policy=misses.policy,
            dropout=misses.dropout,
        ),
        *("--corpus", *map(str, data.corpus)),
        *(("--test", *map(str, data.test)) if data.test else ()),
    ]
    with bars(session, PHASES) as show:
        result = result_of(DISTILLER, arguments, show)
    if session.json:
        return write_json(result)
    _show(session, target, _read(target))
    losses = result["losses"]
    assert isinstance(losses, list)
    session.out.print(f"error  {sparkline([float(str(loss)) for loss in losses])}")


def encoder(
    session: Session,
    file: Annotated[
        Path | None,
        typer.Argument(help="A local encoder's file. Default: all that come with SMILE."),
    ] = None,
) -> None:
    """Show what a local encoder is for, what it was made of and how close it came."""
    found = [(path, _read(path)) for path in (_included() if file is None else [file])]
    if session.json:
        stated = [_stated(path, one) for path, one in found]
        return write_json({"encoders": stated} if file is None else stated[0])
    for path, one in found:
        _show(session, path, one)


def sparkline(values: Sequence[float]) -> str:
    """A curve in one line of characters, of at most `SPARKS_MAX`; empty without values."""
    if not values:
        return ""
    step = max(1.0, len(values) / SPARKS_MAX)
    taken = [values[int(at * step)] for at in range(min(len(values), SPARKS_MAX))]
    least, most = min(taken), max(taken)
    scale = (len(SPARKS) - 1) / (most - least) if most > least else 0.0
    return "".join(SPARKS[round((value - least) * scale)] for value in taken)


def _list_alone(session: Session, context: typer.Context) -> None:
    """Backbones, and local encoders for them. Alone: list the backbones."""
    if context.invoked_subcommand is None:
        list_backbones(session)


def _read(file: Path) -> EncoderFile:
    with _numpy_installed():
        from smile.model.skip.artifact import read  # noqa: PLC0415
    return read(file)


def _included() -> list[Path]:
    with _numpy_installed():
        from smile.model.skip.included import included_paths  # noqa: PLC0415
    return list(included_paths())


@contextmanager
def _numpy_installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise FailedPrecondition(
            f"this needs the package '{error.name}': pip install 'smile-platform[model]'",
            reason="EMBEDDED_NOT_INSTALLED",
        ) from error


def _stated(path: Path, found: EncoderFile) -> dict[str, Json]:
    stated = to_json(found.facts)
    assert isinstance(stated, dict)
    return {"path": str(path), "digest": found.digest, "bytes": found.bytes, **stated}


def _show(session: Session, path: Path, found: EncoderFile) -> None:
    stated, form = found.facts, found.facts.form
    rows = [
        ("local encoder", str(path)),
        ("digest", found.digest),
        ("backbone", f"{stated.backbone} ({stated.backbone_digest[:12]})"),
        ("boundary", f"layers below {form.boundary} are replaced"),
        ("rows", _rows_of(form)),
        ("misses", MISSES[stated.policy]),
        ("behind merge", f"{form.after} + {form.context} wide"),
        ("size", f"{form.parameters:,} numbers, {size(found.bytes)}"),
        ("corpus", f"{stated.corpus}: {stated.texts:,} texts, {stated.tokens:,} tokens"),
        ("learned", f"{stated.epochs} epochs in {stated.seconds:,.0f} s, seed {stated.seed}"),
        *([("began as", stated.parent[:12])] if stated.parent else []),
        *((name.replace("_", " "), f"{value:.4f}") for name, value in stated.measures.items()),
    ]
    session.out.print(facts(rows))


def _rows_of(form: EncoderForm) -> str:
    if form.layers:
        return f"{form.layers} layers over trigrams, {form.wide} wide"
    return f"a network over words, {form.first} and {form.middle} wide"
