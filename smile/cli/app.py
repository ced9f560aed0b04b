"""The commands, put together. A module with commands has `register(app)` and is listed here."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from typing import Annotated

import typer

MODULES = (
    "smile.cli.backbones",
    "smile.cli.vplms",
    "smile.cli.datasets",
    "smile.cli.training",
    "smile.cli.sweeps",
    "smile.cli.jobs",
    "smile.cli.inference",
    "smile.cli.renting",
    "smile.cli.usage",
    "smile.cli.tables",
    "smile.cli.domains",
    "smile.cli.versions",
    "smile.cli.vplm_group",
    "smile.cli.adapters",
    "smile.cli.account",
    "smile.cli.storage",
    "smile.cli.artifacts",
    "smile.cli.platform",
)
EPILOG = (
    "Exit codes: 0 done, 1 internal (or No to a question), 2 usage, 3 invalid argument, "
    "4 not found, 5 no or wrong key or not allowed, 6 exists, changed or not in a state for this, "
    "7 quota or overload, "
    "8 unavailable, 9 deadline, 10 job failed, 130 interrupted."
)


DISTRIBUTION = "smile-platform"


def _tell_version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"smile {version(DISTRIBUTION)}\n")
        raise typer.Exit


def _root(
    told: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_tell_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """What all commands are under; does nothing by itself."""


def build() -> typer.Typer:
    """The application with every command."""
    app = typer.Typer(
        name="smile",
        help="Thousands of tenants' own language models from one machine.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,  # its tracebacks show local variables, and so keys
    )
    app.callback()(_root)
    for name in MODULES:
        importlib.import_module(name).register(app)
    return app
