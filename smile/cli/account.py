"""`smile keys list | create | revoke` and `smile tenants list | create | quota | set-quota`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from smile.accounting import NO_LIMIT, Limit, TenantLimits
from smile.cli.command import Session, command
from smile.cli.output import short, size, table, when, write_json
from smile.errors import InvalidArgument

TenantOption = Annotated[
    str | None, typer.Option(help="For operators: the tenant. Default: the key's own.")
]


def _limit(help_text: str) -> object:
    return typer.Option(help=help_text, rich_help_panel="Limits: a number, 'none' or 'default'")


@dataclass(frozen=True, slots=True)
class QuotaOptions:
    """One option for each limit; those not given stay as they are."""

    stored_bytes: Annotated[str | None, _limit("Bytes stored.")] = None
    vplms: Annotated[str | None, _limit("vPLMs.")] = None
    jobs_queued: Annotated[str | None, _limit("Training jobs that wait.")] = None
    jobs_running: Annotated[str | None, _limit("Training jobs that run at a time.")] = None
    requests_per_day: Annotated[str | None, _limit("Requests answered a day.")] = None
    texts_per_day: Annotated[str | None, _limit("Texts answered a day.")] = None
    tokens_per_day: Annotated[str | None, _limit("Tokens of those texts a day.")] = None
    training_seconds_per_day: Annotated[
        str | None, _limit("Seconds of training a day, `now` jobs at peak hours charged more.")
    ] = None

    def limits(self) -> dict[Limit, int | None]:
        """Those that were given; None: back to the default."""
        given = ((limit, getattr(self, limit.value)) for limit in Limit)
        return {limit: _parsed(limit, text) for limit, text in given if text is not None}


def _parsed(limit: Limit, text: str) -> int | None:
    if text == "default":
        return None
    if text == "none":
        return NO_LIMIT
    if not text.isdecimal() or not text.isascii() or int(text) > NO_LIMIT:
        raise InvalidArgument(
            f"{limit} is a number of at least 0, 'none' or 'default', got '{text[:40]}'"
        )
    return int(text)


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    keys = typer.Typer(help="API keys: list, create, revoke.", no_args_is_help=True)
    keys.command("list")(command(list_keys))
    keys.command("create")(command(create_key))
    keys.command("revoke")(command(revoke_key))
    app.add_typer(keys, name="keys")
    tenants = typer.Typer(help="For operators: tenants.", no_args_is_help=True)
    tenants.command("list")(command(list_tenants))
    tenants.command("create")(command(create_tenant))
    tenants.command("quota")(command(quota))
    tenants.command("set-quota")(command(set_quota))
    app.add_typer(tenants, name="tenants")


def list_keys(session: Session, tenant: TenantOption = None) -> None:
    """List API keys, revoked ones included, without secrets."""
    found = list(session.client.keys(tenant))
    if session.json:
        return write_json({"api_keys": found})
    rows = [
        [short(k.name), k.display_name, when(k.create_time), when(k.revoke_time)] for k in found
    ]
    session.out.print(table(["key", "display name", "created", "revoked"], rows))


def create_key(
    session: Session,
    display_name: Annotated[str, typer.Option(help="Text for people.")] = "",
    tenant: TenantOption = None,
) -> None:
    """Create an API key. It is shown once, on standard output, and never again."""
    made = session.client.create_key(display_name, tenant=tenant)
    if session.json:
        return write_json(made)
    session.note(f"created {made.api_key.name}; keep the key, it is not shown again:")
    session.out.print(made.key, soft_wrap=True, markup=False)


def revoke_key(
    session: Session, key: Annotated[str, typer.Argument(help="Id of the key.")]
) -> None:
    """Revoke an API key. It stops working everywhere within 5 seconds."""
    session.client.revoke_key(key)
    if session.json:
        return write_json({"revoked": key})
    session.note(f"revoked {key}")


def list_tenants(session: Session) -> None:
    """For operators: list tenants."""
    found = list(session.client.tenants())
    if session.json:
        return write_json({"tenants": found})
    rows = [
        [short(t.name), t.display_name, size(t.quota_bytes), when(t.create_time)] for t in found
    ]
    session.out.print(table(["tenant", "display name", "quota>", "created"], rows))


def create_tenant(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="Id of the new tenant.")],
    display_name: Annotated[str, typer.Option(help="Text for people.")] = "",
    quota_bytes: Annotated[int, typer.Option(min=0, help="0: the default, 1 GiB.")] = 0,
) -> None:
    """For operators: create a tenant. Its first key is shown once, on standard output."""
    made = session.client.create_tenant(tenant, display_name=display_name, quota_bytes=quota_bytes)
    if session.json:
        return write_json(made)
    session.note(f"created {made.tenant.name}; keep the key, it is not shown again:")
    session.out.print(made.key, soft_wrap=True, markup=False)


def quota(
    session: Session, tenant: Annotated[str, typer.Argument(help="Id of the tenant.")]
) -> None:
    """For operators: show a tenant's limits, and how much of today's is used."""
    _show_limits(session, session.client.limits(tenant))


def set_quota(
    session: Session,
    tenant: Annotated[str, typer.Argument(help="Id of the tenant.")],
    wanted: QuotaOptions,
) -> None:
    """For operators: set limits of a tenant. Everybody goes by them within 2 minutes."""
    limits = wanted.limits()
    if not limits:
        raise InvalidArgument("name at least one limit to set, like --requests-per-day 1000")
    _show_limits(session, session.client.set_limits(tenant, limits))


def _show_limits(session: Session, found: TenantLimits) -> None:
    if session.json:
        return write_json(found)
    rows = [
        [use.limit, f"{use.allowed:,}", "" if use.used is None else f"{use.used:,}"]
        for use in found.limits
    ]
    session.out.print(table(["limit", "allowed>", "used>"], rows))
