"""Requests that do not parse or break their contract are named precisely."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.errors import InvalidArgument
from smile.rpc.access import declared_access
from smile.rpc.principal import Role
from smile.rpc.validation import VIOLATIONS_SHOWN_MAX, check, decode
from smile.v1 import identity_pb2

UUID = "8f14e45f-ceea-467f-a9f4-1b3c5d7e9f10"


def test_a_good_request_passes() -> None:
    request = identity_pb2.CreateTenantRequest(tenant_id="acme", request_id=UUID)
    decoded = decode(request.SerializeToString(), identity_pb2.CreateTenantRequest.FromString)
    assert decoded == request


def test_every_fault_is_named_by_field() -> None:
    request = identity_pb2.CreateTenantRequest(
        tenant_id="Acme", request_id="7", tenant=identity_pb2.Tenant(quota_bytes=-1)
    )
    with pytest.raises(InvalidArgument) as caught:
        check(request)
    assert {field for field, _ in caught.value.violations} == {
        "tenant_id",
        "tenant.quota_bytes",
        "request_id",
    }
    assert "and 2 more" in caught.value.message
    assert all(description for _, description in caught.value.violations)
    assert VIOLATIONS_SHOWN_MAX >= 3


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_invalid_argument(data: bytes) -> None:
    try:
        decode(data, identity_pb2.CreateTenantRequest.FromString)
    except InvalidArgument as error:
        assert error.reason in {"REQUEST_MALFORMED", "REQUEST_INVALID"}


def test_access_is_read_from_the_contracts() -> None:
    access = declared_access(["smile.v1.IdentityService"])
    assert access["/smile.v1.IdentityService/ResolveApiKey"].roles == {Role.SERVICE}
    assert access["/smile.v1.IdentityService/CreateApiKey"].roles == {Role.TENANT, Role.OPERATOR}
