"""`smile domains create | list | show | delete`: rows of one's own for a field's n-grams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from smile.cli.children import bars, given, result_of
from smile.cli.command import Session, command
from smile.cli.output import Json, facts, size, table, to_json, write_json
from smile.cli.tables import bytes_of, source_of
from smile.errors import NotFound
from smile.model.row_dtype import RowDtype
from smile.representations import places
from smile.representations.manifest import (
    FILES,
    GENERAL,
    TableManifest,
    check_digest,
    check_size,
    read,
)

MAKER = "smile.model.skip.domain"
FOLDER = Path("domains")
PHASES = {
    "count": "texts counted",
    "teacher": "the teacher's states",
    "learning": "learning",
    "measuring": "measuring",
    "compare": "rows compared",
    "rows": "rows computed",
}
CREATE_COMMAND, LIST_COMMAND, SHOW_COMMAND, DELETE_COMMAND = "create", "list", "show", "delete"
FolderOption = Annotated[Path, typer.Option(help="Where domains lie.")]


@dataclass(frozen=True, slots=True)
class DomainOptions:
    """What domain to make, and of what."""

    corpus: Annotated[
        list[Path],
        typer.Option(
            help="File or folder of .txt, .csv or .jsonl, a document a line; may be repeated."
        ),
    ]
    parent: Annotated[str, typer.Option(help="The domain it is made under.")] = GENERAL
    backbone: Annotated[
        str, typer.Option(help="A name of SMILE_BACKBONES, or 'name=dir:/path' and the like.")
    ] = "minilm"
    encoder: Annotated[
        Path | None,
        typer.Option(help="The backbone's local encoder. Default: the one that comes with SMILE."),
    ] = None
    test: Annotated[
        list[Path] | None,
        typer.Option(help="Documents to measure on. Default: a twentieth of the corpus."),
    ] = None
    whole_files: Annotated[
        bool, typer.Option("--whole-files", help="A .txt file is one document, not one a line.")
    ] = False
    folder: FolderOption = FOLDER


@dataclass(frozen=True, slots=True)
class RowOptions:
    """Which n-grams get rows of the domain's own."""

    alpha: Annotated[
        float | None,
        typer.Option(help="Share of the corpus's tokens that they cover. Default: 0.5."),
    ] = None
    difference_min: Annotated[
        float | None,
        typer.Option(help="How far a row is from its parent's, in its lengths. Default: 0.3."),
    ] = None
    budget: Annotated[str, typer.Option(help="Size at most, like 500MB or 2GiB.")] = "2GiB"
    dtype: Annotated[RowDtype, typer.Option(help="How rows are stored.")] = RowDtype.FLOAT16


@dataclass(frozen=True, slots=True)
class FurtherOptions:
    """How to learn. Every default is the maker's own."""

    epochs: Annotated[int | None, typer.Option(help="Passes over the corpus.")] = None
    seed: Annotated[int | None, typer.Option(help="Of order and split.")] = None
    rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    near_share: Annotated[
        float | None,
        typer.Option(help="Share of the epochs, the first, that look at the boundary alone."),
    ] = None
    passage_tokens: Annotated[int | None, typer.Option(help="Longest text learned from.")] = None
    threads: Annotated[int | None, typer.Option(help="Default: as many as cores.")] = None


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="Domains: create, list, show, delete.", no_args_is_help=True)
    group.command(CREATE_COMMAND)(command(create, platform=False))
    group.command(LIST_COMMAND)(command(list_, platform=False))
    group.command(SHOW_COMMAND)(command(show, platform=False))
    group.command(DELETE_COMMAND)(command(delete, platform=False))
    app.add_typer(group, name="domains")


def create(
    session: Session,
    name: Annotated[str, typer.Argument(help="The new domain's id.")],
    options: DomainOptions,
    rows: RowOptions,
    learning: FurtherOptions,
) -> None:
    """Make a domain: its local encoder learns from a corpus, and the rows that matter are kept.

    Interrupted, the same command goes on where it was and ends with the same domain.
    """
    arguments = [
        name,
        f"--backbone={source_of(options.backbone)}",
        f"--parent={options.parent}",
        f"--folder={options.folder}",
        f"--text-files={'whole' if options.whole_files else 'lines'}",
        f"--budget-bytes={bytes_of(rows.budget)}",
        f"--dtype={rows.dtype}",
        *given(
            encoder=options.encoder,
            alpha=rows.alpha,
            difference_min=rows.difference_min,
            epochs=learning.epochs,
            seed=learning.seed,
            rate=learning.rate,
            near_share=learning.near_share,
            passage_tokens=learning.passage_tokens,
            threads=learning.threads,
        ),
        *("--corpus", *map(str, options.corpus)),
        *(("--test", *map(str, options.test)) if options.test else ()),
    ]
    with bars(session, PHASES) as on_said:
        result = result_of(MAKER, arguments, on_said)
    place = options.folder / name
    stated = read(place / places.TABLE)
    measures = result.get("measures")
    if session.json:
        return write_json({**_stated(place, stated), "measures": measures})
    session.out.print(facts([*_facts(place, stated), *_closer(measures)]))


def list_(session: Session, folder: FolderOption = FOLDER) -> None:
    """List the domains in a folder, each under its parent."""
    found = {name: read(place / places.TABLE) for name, place in places.domains_in(folder)}
    if session.json:
        return write_json({"domains": [_stated(folder / name, one) for name, one in found.items()]})
    rows = [
        [
            "  " * depth + name, found[name].parent, _alpha(found[name]),
            f"{found[name].rows:,}", size(found[name].bytes), found[name].digest[:12],
        ]
        for depth, name in _in_order(found)
    ]  # fmt: skip
    session.out.print(table(["domain", "parent", "alpha>", "rows>", "size>", "digest"], rows))


def show(
    session: Session,
    name: Annotated[str, typer.Argument(help="The domain's id.")],
    folder: FolderOption = FOLDER,
    verify: Annotated[bool, typer.Option(help="Read and check every byte.")] = False,
) -> None:
    """Show what a domain is made of; fails if files are missing, cut off or, with --verify,
    changed.
    """
    found = dict(places.domains_in(folder))
    if name not in found:
        raise NotFound(f"domain must be one of {', '.join((GENERAL, *found))}, got '{name}'")
    place = found[name] / places.TABLE
    stated = read(place)
    for file in FILES:
        (check_digest if verify else check_size)(place, file, stated.files[file])
    if session.json:
        return write_json(_stated(found[name], stated))
    session.out.print(facts(_facts(found[name], stated)))
    if verify:
        session.note("every byte is as the manifest says")


def delete(
    session: Session,
    name: Annotated[str, typer.Argument(help="The domain's id.")],
    folder: FolderOption = FOLDER,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a domain that no other is under: its table and its local encoder, without a way back.

    A processor that serves it goes on with it, and takes in no change of the folder, until it is
    started again. Interrupted, the same command goes on where it was.
    """
    places.check_removable(folder, name)
    if not yes and not session.json:
        typer.confirm(f"Delete domain {name} at {folder / name}?", abort=True, err=True)
    places.remove(folder, name)
    if session.json:
        return write_json({"deleted": name})
    session.note(f"deleted {name}")


def _in_order(found: Mapping[str, TableManifest], parent: str = GENERAL) -> list[tuple[int, str]]:
    """Depth and name, children behind their parent; last those whose parent is not there."""
    rows: list[tuple[int, str]] = []
    waiting = [(0, name) for name in sorted(found, reverse=True) if found[name].parent == parent]
    while waiting:
        depth, name = waiting.pop()
        rows.append((depth, name))
        children = sorted((one for one in found if found[one].parent == name), reverse=True)
        waiting += [(depth + 1, one) for one in children]
    there = {name for _, name in rows}
    return rows + [(0, name) for name in sorted(found.keys() - there)]


def _alpha(stated: TableManifest) -> str:
    return "" if stated.delta is None else f"{stated.delta.alpha:g}"


def _stated(place: Path, stated: TableManifest) -> dict[str, Json]:
    fields = to_json(stated)
    assert isinstance(fields, dict)
    return {"path": str(place), "digest": stated.digest, "bytes": stated.bytes, **fields}


def _facts(place: Path, stated: TableManifest) -> list[tuple[str, str]]:
    origin, corpus, chosen = stated.origin, stated.corpus, stated.delta
    share = corpus.covered / corpus.tokens if corpus.tokens else 0.0
    rows = [
        ("domain", f"{stated.domain}, at {place}"),
        ("digest", stated.digest),
        ("parent", stated.parent),
        ("backbone", f"{origin.backbone} ({origin.backbone_digest[:12]})"),
        ("local encoder", f"{origin.encoder_digest[:12]}, boundary {origin.boundary}"),
        ("rows", f"{stated.rows:,} in {stated.dtype}, {size(stated.bytes)}"),
        ("corpus", f"{corpus.texts:,} texts, {corpus.tokens:,} tokens, {corpus.ngrams:,} n-grams"),
        ("corpus digest", corpus.digest),
        ("covered", f"{100 * share:.1f} % of the corpus's tokens"),
    ]
    if chosen is not None:
        most = f"the {chosen.frequent:,} most frequent n-grams, which cover {chosen.alpha:g}"
        rows.append(("chosen from", f"{most}; off by {chosen.difference_min:g} at least"))
    return rows


def _closer(measures: Json) -> list[tuple[str, str]]:
    """How much nearer the ordinary backbone's states it came than its parent's rows are."""
    if not isinstance(measures, dict):
        return []
    return [
        (name.replace("_", " "), f"{value:.4f} (with the parent's rows {before:.4f})")
        for name, value in measures.items()
        if isinstance(value, float) and isinstance(before := measures.get(f"parent_{name}"), float)
    ]
