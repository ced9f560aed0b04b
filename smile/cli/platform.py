"""`smile up | status | down`: the whole platform on this machine."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.status import Status
from rich.text import Text

from smile.cli.command import Session, command
from smile.cli.exits import Exit
from smile.cli.output import facts, size, table, to_json, write_json
from smile.client.sync import Client
from smile.errors import AlreadyExists, FailedPrecondition

if TYPE_CHECKING:
    from smile.embedded import PlatformReport, PlatformState, ServiceReport

DATA_DEFAULT = Path(".smile")
TENANT = "default"
WATCH_EVERY_S = 0.5

Data = Annotated[Path, typer.Option(help="Directory of everything the platform keeps.")]


@dataclass(frozen=True, slots=True)
class UpOptions:
    """How to start it."""

    port_base: Annotated[
        int, typer.Option(help="First of five ports in a row; 0 means any free ports.")
    ] = 7101
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes that train.")] = 1
    backbones: Annotated[
        str | None,
        typer.Option(
            help="By comma: 'name=wheel:package', 'name=dir:/path', 'name=hub:org/m@rev'."
        ),
    ] = None
    foreground: Annotated[bool, typer.Option(help="Stay; the platform ends with this command.")] = (
        False
    )


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for each in (up, status, down):
        app.command(each.__name__)(command(each, platform=False))


def up(session: Session, options: UpOptions, data: Data = DATA_DEFAULT) -> None:
    """Start everything on this machine and wait until it is ready."""
    with _embedded_installed():
        from smile.backbone_config import BACKBONES_DEFAULT  # noqa: PLC0415
        from smile.embedded import PlatformOptions, running, start  # noqa: PLC0415 -- needs psutil
    state = running(data)
    if state is not None and state.phase != "running":
        raise FailedPrecondition(f"the platform on {state.data} is {state.phase}; try again later")
    if state is not None:
        session.note(f"a platform runs on {state.data} already; stop it with 'smile down'")
        return _show_running(session, state, None)
    wanted = PlatformOptions(
        data=data,
        port_base=options.port_base,
        workers=options.workers,
        backbones=options.backbones or BACKBONES_DEFAULT,
        leashed=options.foreground,
    )
    with _Progress(None if session.json else session.err) as progress:
        state = start(wanted, progress.show)
    _show_running(session, state, _first_key(state))
    if options.foreground:
        _stay(session, data)


def status(session: Session, data: Data = DATA_DEFAULT) -> None:
    """Show how every process is; exits with 0 only if all are ready."""
    with _embedded_installed():
        from smile.embedded import report  # noqa: PLC0415 -- needs psutil
    found = asyncio.run(report(data))
    if session.json:
        write_json(
            {
                "data": found.data,
                "running": found.running,
                "ready": found.ready,
                "rss_bytes": found.rss_bytes,
                "failure": found.failure,
                "services": to_json(found.services),
            }
        )
    else:
        _show_report(session, found)
    if not found.ready:
        raise typer.Exit(Exit.UNAVAILABLE)


def down(session: Session, data: Data = DATA_DEFAULT) -> None:
    """Stop everything. What is stored stays."""
    with _embedded_installed():
        from smile.embedded import stop  # noqa: PLC0415 -- needs psutil
    stopped = stop(data)
    if session.json:
        return write_json({"stopped": stopped})
    session.note("stopped" if stopped else f"nothing runs on {data.resolve()}")


@contextmanager
def _embedded_installed() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise FailedPrecondition(
            f"this needs the package '{error.name}': pip install 'smile-platform[embedded]'",
            reason="EMBEDDED_NOT_INSTALLED",
        ) from error


def _first_key(state: PlatformState) -> str | None:
    """The key of the first tenant, made at the very first start; None afterwards."""
    with Client(_operator_key(state), endpoints=state.endpoints) as operator:
        try:
            return operator.create_tenant(TENANT, display_name="Made by smile up").key
        except AlreadyExists:
            return None


def _operator_key(state: PlatformState) -> str:
    from smile.embedded.keys import load_secrets  # noqa: PLC0415 -- pydantic, for this alone

    return load_secrets(_secrets_file(state)).operator_key


def _secrets_file(state: PlatformState) -> Path:
    from smile.embedded.directory import DataDirectory  # noqa: PLC0415

    return DataDirectory.at(Path(state.data)).secrets_file


def _show_running(session: Session, state: PlatformState, key: str | None) -> None:
    secrets_file = _secrets_file(state)
    if session.json:
        return write_json(
            {
                "data": state.data,
                "phase": state.phase,
                "endpoints": state.addresses,
                "environment": {"SMILE_ENDPOINTS": state.endpoints, "SMILE_API_KEY": key},
                "operator_key_file": str(secrets_file),
            },
        )
    out = session.out
    out.print(facts([*state.addresses.items(), ("data", state.data)]))
    out.print(f"\nexport SMILE_ENDPOINTS={state.endpoints}", soft_wrap=True)
    if key is not None:
        out.print(f"export SMILE_API_KEY={key}", soft_wrap=True)
        session.note(f"\nThis key of tenant '{TENANT}' is shown once: keep it.")
    else:
        session.note(
            f"\nThe key of tenant '{TENANT}' was shown at the first start. Another one:\n"
            f"  SMILE_API_KEY=<operator_key of {secrets_file}> smile keys create "
            f"--tenant {TENANT}"
        )
    session.note(f"The operator's key is in {secrets_file}")


def _show_report(session: Session, found: PlatformReport) -> None:
    if not found.running:
        session.out.print(f"no platform runs on {found.data}", soft_wrap=True)
        if found.failure:
            session.err.print(Text(f"the last start failed: {found.failure}"))
        return
    columns = ["service", "state", "address", "pid>", "restarts>", "last exit", "memory>"]
    rows = [
        [
            service.name, _state_text(service), service.address, str(service.pid or ""),
            str(service.restarts), service.last_exit, size(service.rss_bytes),
        ]
        for service in found.services
    ]  # fmt: skip
    rows.append(
        ["total", "ready" if found.ready else "NOT READY", "", "", "", "", size(found.rss_bytes)]
    )
    session.out.print(table(columns, rows))


def _state_text(service: ServiceReport) -> str:
    """`ready` only where it says so now."""
    if service.pid is None:
        return str(service.phase).upper()
    if not service.live:
        return "starting" if service.phase == "starting" else "NOT ANSWERING"
    return "ready" if service.ready else "NOT READY"


def _stay(session: Session, data: Path) -> None:
    """Wait for Ctrl-C or SIGTERM, then stop the platform; or for its end."""
    from smile.embedded import running, stop  # noqa: PLC0415 -- needs psutil

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    session.note("Ctrl-C stops the platform")
    try:
        while running(data) is not None:
            time.sleep(WATCH_EVERY_S)
    except KeyboardInterrupt:
        stop(data)
        return
    raise typer.Exit(Exit.UNAVAILABLE)


class _Progress:
    """Tells which processes are ready, as they become so."""

    def __init__(self, console: Console | None) -> None:
        self._console = console
        self._ready: set[str] = set()
        self._started = time.monotonic()
        self._status = Status("starting", console=console) if console is not None else None

    def __enter__(self) -> _Progress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, state: PlatformState) -> None:
        if self._console is None or self._status is None:
            return
        for child in state.children:
            if child.phase == "ready" and child.name not in self._ready:
                self._ready.add(child.name)
                after_s = time.monotonic() - self._started
                self._console.print(Text(f"{child.name:<10} ready after {after_s:.1f} s"))
        waiting = [child.name for child in state.children if child.name not in self._ready]
        self._status.update(f"starting {', '.join(waiting)}")
