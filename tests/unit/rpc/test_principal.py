"""Whose name is whose: another tenant's looks absent."""

from __future__ import annotations

import contextvars

import pytest

from smile.errors import InvalidName, NotFound, PermissionDenied, Unauthenticated
from smile.names import DatasetName, TenantId, TenantName, VersionName, VplmName
from smile.rpc.principal import (
    Principal,
    Role,
    current_principal,
    not_found,
    own,
    set_principal,
)

ACME = Principal(Role.TENANT, TenantId("acme"), "k1")
FOR_ACME = Principal(Role.SERVICE, TenantId("acme"))


@pytest.mark.parametrize("principal", [ACME, FOR_ACME])
def test_ones_own_names_are_parsed(principal: Principal) -> None:
    expected = VplmName(TenantId("acme"), "x")
    assert own("tenants/acme/vplms/x", VplmName.parse, principal) == expected
    assert own("tenants/-/vplms/x", VplmName.parse, principal) == expected
    assert own("tenants/-", TenantName.parse, principal) == TenantName(TenantId("acme"))
    version = own("tenants/-/vplms/x/versions/3", VersionName.parse, principal)
    assert version == VersionName(expected, 3)


@pytest.mark.parametrize("principal", [ACME, FOR_ACME])
def test_anothers_name_looks_absent(principal: Principal) -> None:
    for name in ("tenants/globex/vplms/x", "tenants/acme2/vplms/x", "tenants/a/vplms/x"):
        with pytest.raises(NotFound) as caught:
            own(name, VplmName.parse, principal)
        absent = not_found(VplmName.parse(name))
        assert (caught.value.message, caught.value.reason, caught.value.metadata) == (
            absent.message,
            absent.reason,
            absent.metadata,
        )


@pytest.mark.parametrize(
    "name",
    ["", "-", "tenants", "tenants/", "tenants/-/", "tenants/--/vplms/x", "tenants/-/vplms/../x",
     "tenants/-x/vplms/x", "tenants/-/datasets/x", "/tenants/-/vplms/x", "tenants/-/vplms/x\n"],
)  # fmt: skip
def test_malformed_names_are_refused_as_such(name: str) -> None:
    with pytest.raises(InvalidName):
        own(name, VplmName.parse, ACME)


def test_operators_name_any_tenant_but_have_none_of_their_own() -> None:
    operator = Principal(Role.OPERATOR)
    expected = DatasetName(TenantId("globex"), "d")
    assert own("tenants/globex/datasets/d", DatasetName.parse, operator) == expected
    with pytest.raises(InvalidName):
        own("tenants/-/datasets/d", DatasetName.parse, operator)


def test_a_service_that_acts_for_nobody_has_nothing() -> None:
    with pytest.raises(PermissionDenied, match="smile-tenant"):
        own("tenants/acme/vplms/x", VplmName.parse, Principal(Role.SERVICE))


def test_there_is_no_caller_outside_a_call() -> None:
    def inside() -> None:
        set_principal(ACME)
        assert current_principal() is ACME

    contextvars.copy_context().run(inside)
    with pytest.raises(Unauthenticated):
        contextvars.Context().run(current_principal)
