"""Resource names: printed and parsed by one module, and nothing else passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smile.errors import InvalidName
from smile.names import (
    ID_PATTERN,
    ApiKeyName,
    BackboneName,
    DatasetName,
    JobName,
    TenantId,
    TenantName,
    VersionName,
    VplmName,
    check_id,
    tenant_id,
)

IDS = st.from_regex(ID_PATTERN, fullmatch=True).map(lambda text: text.removesuffix("\n"))
TENANTS = IDS.map(TenantId)
NAMES: st.SearchStrategy[Any] = st.one_of(
    st.builds(TenantName, TENANTS),
    st.builds(VplmName, TENANTS, IDS),
    st.builds(VersionName, st.builds(VplmName, TENANTS, IDS), st.integers(1, 999_999_999)),
    st.builds(DatasetName, TENANTS, IDS),
    st.builds(JobName, TENANTS, IDS),
    st.builds(ApiKeyName, TENANTS, IDS),
    st.builds(BackboneName, IDS),
)
CLASSES: list[Any] = [
    TenantName,
    VplmName,
    VersionName,
    DatasetName,
    JobName,
    ApiKeyName,
    BackboneName,
]


@given(NAMES)
def test_names_round_trip(name: Any) -> None:
    assert type(name).parse(str(name)) == name


@given(NAMES)
def test_a_name_is_of_one_kind_only(name: Any) -> None:
    for cls in CLASSES:
        if cls is not type(name):
            with pytest.raises(InvalidName):
                cls.parse(str(name))


@given(st.text(max_size=100))
def test_any_text_parses_to_itself_or_is_refused(text: str) -> None:
    for cls in CLASSES:
        try:
            name = cls.parse(text)
        except InvalidName:
            continue
        assert str(name) == text


@pytest.mark.parametrize(
    "value",
    [
        "",
        "A",
        "1a",
        "-a",
        "a-",
        "a_b",
        "a.b",
        "a/b",
        "..",
        "a\n",
        "a b",
        "é",
        "\u0430",
        "a" * 64,
        "a\x00",
    ],
)
def test_malformed_ids_are_refused(value: str) -> None:
    with pytest.raises(InvalidName) as caught:
        check_id(value, "vPLM")
    assert "vPLM" in caught.value.message
    assert caught.value.metadata == {"pattern": ID_PATTERN}
    with pytest.raises(InvalidName):
        VplmName.parse(f"tenants/acme/vplms/{value}")


@pytest.mark.parametrize("value", ["a", "a1", "a-b", "a" * 63, "z9-9z"])
def test_wellformed_ids_are_kept(value: str) -> None:
    assert tenant_id(value) == value


@pytest.mark.parametrize("number", ["0", "-1", "01", "1.0", "1e3", "9" * 10, "", "x", "\u0661"])
def test_malformed_version_numbers_are_refused(number: str) -> None:
    with pytest.raises(InvalidName):
        VersionName.parse(f"tenants/acme/vplms/x/versions/{number}")


def test_long_values_are_shortened_in_messages() -> None:
    with pytest.raises(InvalidName) as caught:
        VplmName.parse("x" * 100_000)
    assert len(caught.value.message) < 300
    assert "100000 characters" in caught.value.message
