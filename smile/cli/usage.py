"""`smile usage`: what one stores, may have and used by day, and what full models would cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.table import Table

from smile.accounting import DAYS_MAX, MICROSECONDS, Counts, LimitUse, PlatformUsage, UsageDay
from smile.cli.account import TenantOption
from smile.cli.command import Session, command
from smile.cli.output import facts, short, size, table, to_json, when, write_json
from smile.errors import InvalidArgument
from smile.resources import Usage, VplmUsage
from smile.savings import FULL_TRAINING_FACTOR, Assumptions, Savings, saved

DAYS_DEFAULT = 7
BAR_CHARS = 10  # a day's row has room on a screen of 80
_EIGHTHS = " ▏▎▍▌▋▊▉"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("usage")(command(usage))


def usage(
    session: Session,
    tenant: TenantOption = None,
    days: Annotated[
        int,
        typer.Option(
            min=0,
            max=DAYS_MAX,
            help="Last days of UTC whose use to show, today included; 0: only what is stored.",
        ),
    ] = DAYS_DEFAULT,
    all_tenants: Annotated[
        bool, typer.Option("--all-tenants", help="For operators: every tenant, and all by day.")
    ] = False,
    full_training_factor: Annotated[
        float, typer.Option(min=0.0, help="Times as long as here that full fine-tuning takes.")
    ] = FULL_TRAINING_FACTOR,
) -> None:
    """Show what is stored and allowed, and what the last days used, beside what full models would
    take. What was done in the last seconds may not be counted yet.
    """
    if all_tenants:
        if tenant is not None:
            raise InvalidArgument("--tenant and --all-tenants exclude each other")
        return show_all(session, session.client.usage_of_all(days=max(days, 1)))
    found = session.client.usage(tenant, days=days)
    savings = Savings.of(found, Assumptions(full_training_factor=full_training_factor))
    if session.json:
        body = to_json(found)
        assert isinstance(body, dict)
        return write_json({**body, "savings": savings})
    session.out.print(vplm_table(found.vplms))
    if days:
        session.out.print(use_table(found.vplms, days))
        session.out.print(day_table(found.days))
    session.out.print(limit_table(found.limits))
    session.out.print(summary(found, savings, days))
    for warning in found.warnings:
        session.note(f"warning: {warning}")


def show_all(session: Session, found: PlatformUsage) -> None:
    """Every tenant on a range of days."""
    if session.json:
        return write_json(found)
    rows = [
        [short(each.name), *count_cells(each.counts), size(each.stored_bytes),
         str(each.vplm_count)]
        for each in found.tenants
    ]  # fmt: skip
    session.out.print(table(["tenant", *COUNT_COLUMNS, "stored>", "vPLMs>"], rows))
    session.out.print(day_table(found.days))


def saving(row: VplmUsage) -> str:
    """How much smaller the serving version is than the full model: `98.97 %`."""
    return saved(row.serving_bytes, row.full_model_bytes)


COUNT_COLUMNS = ("requests>", "texts>", "tokens>", "compute>", "training>", "jobs>")


def count_cells(counts: Counts) -> list[str]:
    """As `COUNT_COLUMNS`."""
    return [
        f"{counts.requests:,}",
        f"{counts.texts:,}",
        f"{counts.tokens:,}",
        f"{counts.compute_us / MICROSECONDS:,.1f} s",
        f"{counts.training_us / MICROSECONDS:,.1f} s",
        f"{counts.jobs:,}",
    ]


def vplm_table(rows: Sequence[VplmUsage]) -> Table:
    """What each vPLM stores."""
    return table(
        ["vplm", "versions>", "stored>", "serving>", "full model>", "saving>"],
        [
            [
                short(row.name), str(row.versions), size(row.size_bytes), size(row.serving_bytes),
                size(row.full_model_bytes), saving(row),
            ]
            for row in rows
        ],
    )  # fmt: skip


def use_table(rows: Sequence[VplmUsage], days: int) -> Table:
    """What each vPLM that was used at all was used for."""
    return table(
        [f"vplm, {_last(days)}", *COUNT_COLUMNS],
        [[short(row.name), *count_cells(row.counts)] for row in rows if row.counts],
    )


def day_table(days: Sequence[UsageDay]) -> Table:
    """What was used by day, and a bar for its texts."""
    most = max((day.counts.texts for day in days), default=0)
    columns = ["day", *COUNT_COLUMNS, "by texts"]
    return table(
        columns,
        [
            [day.day.isoformat(), *count_cells(day.counts), bar(day.counts.texts, most)]
            for day in days
        ],
    )


def bar(value: int, most: int, chars: int = BAR_CHARS) -> str:
    """A bar as long as `value` is of `most`; the least that is not nothing is seen."""
    eighths = 0 if most <= 0 or value <= 0 else max(round(8 * chars * value / most), 1)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + (_EIGHTHS[rest] if rest else "")


def limit_table(limits: Sequence[LimitUse]) -> Table:
    """What there may be, and how much of it is taken."""
    return table(
        ["limit", "allowed>", "used>", "share>", "starts again"],
        [
            [
                use.limit,
                f"{use.allowed:,}",
                "" if use.used is None else f"{use.used:,}",
                "" if use.share is None else f"{100 * use.share:.1f} %",
                when(use.reset_time),
            ]
            for use in limits
        ],
    )


def summary(found: Usage, savings: Savings, days: int) -> Table:
    """What all models take here, and would as full ones; training on the last `days` days."""
    factor = savings.assumptions.full_training_factor
    rows = [
        ("stored", f"{size(found.stored_bytes)} of {size(found.quota_bytes)}"),
        ("datasets", size(found.dataset_bytes)),
        ("vPLMs", str(found.vplm_count)),
        ("models", _against(savings.model_bytes, savings.full_model_bytes)),
        ("memory for all", _against(savings.memory_bytes, savings.full_memory_bytes)),
    ]
    if savings.training_seconds:
        rows.append(
            (
                f"training, {_last(days)}",
                f"{savings.training_seconds:,.1f} s, {savings.full_training_seconds:,.1f} s in "
                f"full (taken to be {factor:g} times as long)",
            )
        )
    return facts(rows)


def _last(days: int) -> str:
    return f"last {days} days" if days > 1 else "today"


def _against(here: int, full: int) -> str:
    less = saved(here, full) if here < full else ""
    return f"{size(here)}, {size(full)} as full models" + (f" ({less} less)" if less else "")
