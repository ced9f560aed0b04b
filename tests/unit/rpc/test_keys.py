"""Keys: parsed strictly, made at random, hashed and shown with care."""

from __future__ import annotations

import hashlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.errors import Unauthenticated
from smile.names import ID_PATTERN, TenantId
from smile.rpc.keys import KeyKind, KeyParts, new_key, new_tenant_key, same

SECRET = "_-" + "aB3" * 13 + "__"
BASE64URL = string.ascii_letters + string.digits + "-_"
SECRETS = st.text(BASE64URL, min_size=43, max_size=43)
TENANTS = st.from_regex(ID_PATTERN, fullmatch=True).map(lambda text: TenantId(text.rstrip("\n")))
KEY_IDS = st.text(string.ascii_lowercase + "234567", min_size=15, max_size=15).map("k".__add__)


@given(TENANTS, KEY_IDS, SECRETS)
def test_tenant_keys_round_trip(tenant: TenantId, key_id: str, secret: str) -> None:
    parts = KeyParts(KeyKind.TENANT, secret, tenant, key_id)
    assert KeyParts.parse(parts.text) == parts


@given(st.sampled_from([KeyKind.OPERATOR, KeyKind.SERVICE]), SECRETS)
def test_platform_keys_round_trip(kind: KeyKind, secret: str) -> None:
    parts = KeyParts(kind, secret)
    assert KeyParts.parse(parts.text) == parts
    assert parts.text.startswith(f"{kind}_")


@given(st.text(max_size=120) | st.text(BASE64URL, max_size=120).map("smile_".__add__))
def test_anything_else_is_refused_alike(text: str) -> None:
    try:
        parts = KeyParts.parse(text)
    except Unauthenticated as error:
        assert text == "" or error.reason == "KEY_INVALID"
    else:
        assert parts.text == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "_",
        "smile",
        "smile_",
        f"smile_acme_{SECRET}",
        f"smile__kaaaaaaaaaaaaaaa_{SECRET}",
        f"smile_Acme_kaaaaaaaaaaaaaaa_{SECRET}",
        f"smile_acme_kaaaaaaaaaaaaaaa_{SECRET}=",
        f"smile_acme_kaaaaaaaaaaaaaaa_{SECRET}\n",
        f"smile_acme_kaaaaaaaaaaaaaa1_{SECRET}",
        f"smile_acme_xaaaaaaaaaaaaaaa_{SECRET}",
        f"smile_../x_kaaaaaaaaaaaaaaa_{SECRET}",
        f"smile_acmé_kaaaaaaaaaaaaaaa_{SECRET}",
        f"smileop_{SECRET}x",
        f"smilesvc_{SECRET[:-1]}",
        f"SMILEOP_{SECRET}",
        f"smilexx_{SECRET}",
    ],
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        KeyParts.parse(text)
    assert SECRET not in caught.value.message


def test_new_keys_differ_and_are_well_formed() -> None:
    made = [new_tenant_key(TenantId("acme")) for _ in range(50)]
    made += [new_key(kind) for kind in (KeyKind.OPERATOR, KeyKind.SERVICE) for _ in range(50)]
    assert len({parts.text for parts in made}) == 150
    assert [KeyParts.parse(parts.text) for parts in made] == made
    with pytest.raises(ValueError, match="new_tenant_key"):
        new_key(KeyKind.TENANT)


def test_the_secret_is_hashed_and_never_shown() -> None:
    parts = KeyParts(KeyKind.OPERATOR, SECRET)
    assert parts.secret_sha256 == hashlib.sha256(SECRET.encode()).hexdigest()
    assert SECRET not in repr(parts)


@given(st.text(max_size=20), st.text(max_size=20))
def test_same_is_equality(left: str, right: str) -> None:
    assert same(left, right) is (left == right)
    assert same(left, left)
