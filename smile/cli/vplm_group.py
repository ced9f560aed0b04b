"""`smile vplms ...`: all that is done with vPLMs as wholes."""

from __future__ import annotations

from collections.abc import Callable

import typer

from smile.cli import history, porting, vplms
from smile.cli.command import command

COMMANDS: dict[str, Callable[..., None]] = {
    "create": vplms.create,
    "list": vplms.list_,
    "show": vplms.show,
    "update": vplms.update,
    "delete": vplms.delete,
    "undelete": history.undelete,
    "rollback": history.rollback,
    "history": history.history,
    "import": porting.import_,
    "export": porting.export,
}


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    group = typer.Typer(help="vPLMs: make, find, delete, take back.", no_args_is_help=True)
    for name, function in COMMANDS.items():
        group.command(name)(command(function))
    app.add_typer(group, name="vplms")
