"""`smile rent | release | processors | stats`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from smile.cli.command import Session, command
from smile.cli.output import facts, short, size, table, to_json, when, write_json
from smile.client.options import RentOptions
from smile.processors import Processor
from smile.resources import Exactness

VplmArgument = Annotated[str, typer.Argument(help="Id of the vPLM.")]


@dataclass(frozen=True, slots=True)
class Terms:
    """What to rent."""

    weight: Annotated[float, typer.Option(help="Share against other tenants, 0.1 to 10.")] = 1.0
    concurrency: Annotated[int, typer.Option(help="Requests computed at a time; 0: any.")] = 0
    rate: Annotated[float, typer.Option(help="Texts per second; 0: any.")] = 0.0
    burst: Annotated[int, typer.Option(help="Texts at once; 0: a second's.")] = 0
    pin: Annotated[bool, typer.Option(help="Keep the module on the device.")] = False
    idle: Annotated[float, typer.Option(help="Seconds until it goes cold; 0: 600.")] = 0.0
    materialized: Annotated[
        bool | None,
        typer.Option(
            "--materialized/--exact",
            help="Look up the lower layers where a request does not say. Default: the vPLM's own.",
        ),
    ] = None
    wait: Annotated[bool, typer.Option(help="Return once the module is in memory.")] = False


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    for each in (rent, release, processors, stats):
        app.command(each.__name__)(command(each))


def rent(session: Session, vplm: VplmArgument, terms: Terms) -> None:
    """Rent a processor for a vPLM, or change its terms."""
    options = RentOptions(
        weight=terms.weight,
        concurrency_max=terms.concurrency,
        texts_per_s=terms.rate,
        burst_texts=terms.burst,
        pinned=terms.pin,
        idle_s=terms.idle,
        wait=terms.wait,
    )
    if terms.materialized is not None:
        options["exactness"] = Exactness.MATERIALIZED if terms.materialized else Exactness.EXACT
    rented = session.client.rent(vplm, **options)
    if session.json:
        return write_json(rented)
    session.note(f"rented {rented.name}: {_terms_text(rented)}; it is {rented.state}")


def release(session: Session, vplm: VplmArgument) -> None:
    """Give a vPLM's processor back."""
    session.client.release(vplm)
    if session.json:
        return write_json({"released": vplm})
    session.note(f"released {vplm}")


def processors(session: Session) -> None:
    """List rented processors."""
    found = list(session.client.processors())
    if session.json:
        return write_json({"processors": found})
    rows = [
        [
            short(each.vplm), str(each.state), _terms_text(each), str(each.counters.requests),
            str(each.counters.texts), str(each.counters.refused), str(each.counters.errors),
            f"{each.counters.module_hits}/{each.counters.module_loads}",
            when(each.last_used_time),
        ]
        for each in found
    ]  # fmt: skip
    columns = ["vplm", "state", "terms", "requests>", "texts>", "refused>", "errors>"]
    session.out.print(table([*columns, "hits/loads>", "last used"], rows))


def stats(session: Session) -> None:
    """Show how the processor is doing."""
    found = session.client.stats()
    if session.json:
        return write_json(found)
    body = to_json(found)
    assert isinstance(body, dict)
    rows = [
        (name.replace("_", " "), size(int(value)) if "bytes" in name else _plain(value))
        for name, value in body.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]
    session.out.print(facts([("backbones", ", ".join(found.backbones)), *rows]))


def _plain(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _terms_text(processor: Processor) -> str:
    """Terms in a few words: `weight 2, 4 at a time, 100 texts/s (200 at once), pinned`."""
    terms = processor.terms
    words = [f"weight {terms.weight:g}"]
    if terms.concurrency_max:
        words.append(f"{terms.concurrency_max} at a time")
    if terms.texts_per_s:
        burst = f" ({terms.burst_texts} at once)" if terms.burst_texts else ""
        words.append(f"{terms.texts_per_s:g} texts/s{burst}")
    if terms.pinned:
        words.append("pinned")
    if terms.idle_s:
        words.append(f"cold after {terms.idle_s:g} s")
    if terms.exactness is not None:
        words.append(str(terms.exactness))
    return ", ".join(words)
