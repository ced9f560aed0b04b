"""`smile sweep`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Annotated

import typer

from smile.cli.command import Session, command
from smile.cli.datasets import ColumnOptions
from smile.cli.training import HyperOptions, SourceOptions, dataset_of, options_of, started
from smile.client.options import trial
from smile.client.trials import Trial, grid, sample
from smile.resources import HyperParameters


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """What to try."""

    values: Annotated[
        list[str],
        typer.Option(
            "--try", help="NAME=VALUE,VALUE,... of a hyper-parameter; repeated: all combinations."
        ),
    ]
    at_once: Annotated[int, typer.Option(min=1, help="Trials at a time.")] = 2
    random: Annotated[
        int, typer.Option(min=0, help="Try so many of the combinations, drawn by --seed; 0: all.")
    ] = 0


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("sweep")(command(sweep))


def sweep(
    session: Session,
    vplm: Annotated[str, typer.Argument(help="Id of the vPLM.")],
    tried: TrialOptions,
    source: SourceOptions,
    columns: ColumnOptions,
    hyper: HyperOptions,
    follow: Annotated[
        bool, typer.Option("--watch/--detach", help="Stay until all trials have ended.")
    ] = True,
) -> None:
    """Train a vPLM with several hyper-parameters; the best trial's version is the one to serve."""
    trials: Sequence[Trial] = grid(**dict(_axis(text) for text in tried.values))
    if tried.random:
        trials = sample(trials, tried.random, hyper.seed)
    options = options_of(source, columns, hyper)
    for one in trials:
        trial(options, one)  # wrong ones are told before the upload
    dataset = dataset_of(session, vplm, source, options)
    job = session.client.sweep(vplm, dataset, trials, concurrency_max=tried.at_once, **options)
    started(session, job, follow=follow)


def _axis(text: str) -> tuple[str, list[object]]:
    """`learning_rate=1e-3,2e-3` as a name and its values."""
    kinds = {field.name: type(field.default) for field in fields(HyperParameters)}
    name, _, given = text.partition("=")
    name = name.strip().replace("-", "_")
    kind = kinds.get(name)
    if kind not in (int, float) and not (kind and issubclass(kind, str)):
        raise typer.BadParameter(
            f"--try takes NAME=VALUE,... of a hyper-parameter, got '{text[:80]}'"
        )
    try:
        return name, [kind(value.strip()) for value in given.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"--try {name}: expected {kind.__name__}s, got '{given[:80]}'"
        ) from None
