"""`smile usage`, `smile keys list | create | revoke` and `smile tenants list | create`."""

from __future__ import annotations

from typing import Annotated

import typer

from smile.cli.command import Session, command
from smile.cli.output import facts, short, size, table, when, write_json
from smile.resources import VplmUsage

TenantOption = Annotated[
    str | None, typer.Option(help="For operators: the tenant. Default: the key's own.")
]


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    app.command("usage")(command(usage))
    keys = typer.Typer(help="API keys: list, create, revoke.", no_args_is_help=True)
    keys.command("list")(command(list_keys))
    keys.command("create")(command(create_key))
    keys.command("revoke")(command(revoke_key))
    app.add_typer(keys, name="keys")
    tenants = typer.Typer(help="For operators: tenants.", no_args_is_help=True)
    tenants.command("list")(command(list_tenants))
    tenants.command("create")(command(create_tenant))
    app.add_typer(tenants, name="tenants")


def usage(session: Session, tenant: TenantOption = None) -> None:
    """Show bytes stored per vPLM, beside what a full model would take."""
    found = session.client.usage(tenant)
    if session.json:
        return write_json(found)
    rows = [
        [
            short(row.name), str(row.versions), size(row.size_bytes), size(row.serving_bytes),
            size(row.full_model_bytes), saving(row),
        ]
        for row in found.vplms
    ]  # fmt: skip
    columns = ["vplm", "versions>", "stored>", "serving>", "full model>", "saving>"]
    session.out.print(table(columns, rows))
    session.out.print(
        facts(
            [
                ("stored", f"{size(found.stored_bytes)} of {size(found.quota_bytes)}"),
                ("datasets", size(found.dataset_bytes)),
                ("vPLMs", str(found.vplm_count)),
            ]
        )
    )


def saving(row: VplmUsage) -> str:
    """How much smaller the serving version is than the full model: `98.97 %`."""
    if row.full_model_bytes <= 0:
        return ""
    return f"{100 * (1 - row.serving_bytes / row.full_model_bytes):.2f} %"


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
