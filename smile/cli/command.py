"""From functions to commands: shared options, groups of options, errors to exit codes.

A command is a function that takes a `Session` first and then its own parameters, as typer reads
them (`Annotated[..., Option(...)]`). A parameter whose type is a dataclass stands for one option a
field.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cached_property
from typing import Annotated, Any, get_type_hints

import typer
from rich.console import Console
from rich.text import Text

from smile.cli.exits import Exit, exit_of
from smile.cli.output import Output, console, error_json, error_sentence
from smile.client.sync import Client
from smile.errors import SmileError

PANEL = "Platform"


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """What every command takes."""

    output: Annotated[
        Output,
        typer.Option("--output", "-o", help="For people or for programs.", rich_help_panel=PANEL),
    ] = Output.TABLE


@dataclass(frozen=True, slots=True)
class PlatformOptions:
    """What every command that talks to the platform takes besides."""

    api_key: Annotated[
        str | None, typer.Option(help="Default: SMILE_API_KEY.", rich_help_panel=PANEL)
    ] = None
    endpoints: Annotated[
        str | None,
        typer.Option(
            help="Like 'storage=host:port,creator=...'. Default: SMILE_ENDPOINTS, then this "
            "machine's ports 7101 to 7104.",
            rich_help_panel=PANEL,
        ),
    ] = None


class Session:
    """What a command works with: where it shows things, and the client, made when first used."""

    def __init__(self, output: OutputOptions, platform: PlatformOptions | None = None) -> None:
        self.output = output.output
        self._platform = platform or PlatformOptions()

    @property
    def json(self) -> bool:
        """Whether standard output is for programs."""
        return self.output is Output.JSON

    @cached_property
    def out(self) -> Console:
        return console()

    @cached_property
    def err(self) -> Console:
        return console(stderr=True)

    @cached_property
    def client(self) -> Client:
        return Client(self._platform.api_key, endpoints=self._platform.endpoints)

    def note(self, sentence: str) -> None:
        """A sentence for people on standard error; programs do not see it."""
        if not self.json:
            self.err.print(Text(sentence))

    def close(self) -> None:
        if "client" in self.__dict__:
            self.client.close()


def command(function: Callable[..., None], *, platform: bool = True) -> Callable[..., None]:
    """`function`, whose first parameter is a `Session`, as typer takes it. With `platform` False,
    without key and endpoints."""
    shared = [OutputOptions, PlatformOptions] if platform else [OutputOptions]
    hints = get_type_hints(function, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[1:]
    groups = {p.name: hints[p.name] for p in own if is_dataclass(hints[p.name])}
    parameters = [
        parameter
        for p in own
        for parameter in (
            _of_fields(groups[p.name])
            if p.name in groups
            else [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[p.name])]
        )
    ]
    parameters += [parameter for group in shared for parameter in _of_fields(group)]

    def run(**values: object) -> None:
        session = Session(*(_taken(group, values) for group in shared))
        arguments: Any = {name: _taken(group, values) for name, group in groups.items()}
        with _reporting(session):
            function(session, **arguments, **values)

    run.__name__ = function.__name__
    run.__doc__ = function.__doc__
    run.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _of_fields(group: type) -> list[inspect.Parameter]:
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=hints[field.name],
        )
        for field in fields(group)
    ]


def _taken(group: Any, values: dict[str, object]) -> Any:
    """A `group` of the values with its fields' names, which are removed."""
    return group(**{field.name: values.pop(field.name) for field in fields(group)})


@contextmanager
def _reporting(session: Session) -> Iterator[None]:
    """Ends the process as the exit table says, with the error on standard error."""
    try:
        yield
    except SmileError as error:
        report(session, error)
        raise typer.Exit(exit_of(error)) from error
    except BrokenPipeError:
        # whoever read our output has read enough; nothing may be flushed into the pipe any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(Exit.OK) from None
    finally:
        session.close()


def report(session: Session, error: SmileError) -> None:
    """Show an error on standard error: one sentence, or one JSON document."""
    if session.json:
        sys.stderr.write(json.dumps(error_json(error), ensure_ascii=False) + "\n")
        return
    text = Text("error: ", style="bold red")
    text.append(error_sentence(error), style="default")
    session.err.print(text)
    for field, description in error.violations[1:]:
        session.err.print(Text(f"  {field}: {description}"))
