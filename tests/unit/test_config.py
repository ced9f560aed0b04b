"""Settings come from the environment, and all wrong ones are named at once."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError
from pydantic_settings import SettingsConfigDict

from smile.config import EXIT_CONFIG, ServiceSettings, load, misspelt, variable
from smile.logs import LogFormat, LogLevel
from smile.rpc.keys import KeyKind, new_key

KEY = new_key(KeyKind.SERVICE).text


class DemoSettings(ServiceSettings):
    """What a service would declare."""

    model_config = SettingsConfigDict(env_prefix="SMILE_DEMO_")

    port: int = Field(default=7009, ge=0, le=65_535)
    storage_address: str = Field(validation_alias="SMILE_STORAGE_ADDRESS", min_length=1)
    jobs_max: int = Field(default=3, ge=1, le=10)


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in DemoSettings.model_fields:
        monkeypatch.delenv(variable(DemoSettings, field), raising=False)


def give(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def refused(capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        load(DemoSettings)
    assert caught.value.code == EXIT_CONFIG == 78
    return capsys.readouterr().err


def test_defaults_shared_and_prefixed_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    give(
        monkeypatch,
        SMILE_SERVICE_KEY=KEY,
        SMILE_STORAGE_ADDRESS="storage:7001",
        SMILE_LOG_LEVEL="debug",
        SMILE_DEMO_JOBS_MAX="7",
        SMILE_DEMO_HOST="0.0.0.0",
        SMILE_DEMO_UNKNOWN="ignored: platforms inject variables of their own",
    )
    settings = load(DemoSettings)
    assert settings.service_key.get_secret_value() == KEY
    assert settings.storage_address == "storage:7001"
    assert (settings.log_level, settings.log_format) == (LogLevel.DEBUG, LogFormat.JSON)
    assert (settings.host, settings.port, settings.jobs_max) == ("0.0.0.0", 7009, 7)
    assert (settings.max_message_bytes, settings.concurrent_rpcs_max) == (4 << 20, 1024)
    assert settings.drain_s == 10.0


def test_misspelt_variables_are_found_and_others_let_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    give(
        monkeypatch,
        SMILE_DEMO_JOBS_MAX="7",
        SMILE_DEMO_JOSB_MAX="8",
        SMILE_DEMO_SERVICE_PORT="80",
        SMILE_DEMO_PORT_7009_TCP_ADDR="10.0.0.1",
        SMILE_DEMOS_JOBS_MAX="9",
    )
    assert misspelt(DemoSettings) == {"SMILE_DEMO_JOSB_MAX": "SMILE_DEMO_JOBS_MAX"}


def test_settings_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SMILE_SERVICE_KEY=KEY, SMILE_STORAGE_ADDRESS="storage:7001")
    with pytest.raises(ValidationError):
        load(DemoSettings).port = 1


def test_all_faults_are_named_by_variable_value_and_expectation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(
        monkeypatch,
        SMILE_SERVICE_KEY="hunter2",
        SMILE_LOG_FORMAT="xml",
        SMILE_DEMO_PORT="70000",
        SMILE_DEMO_JOBS_MAX="many",
        SMILE_DEMO_DRAIN_S="-1",
    )
    report = refused(capsys)
    lines = report.splitlines()
    assert lines[0] == "6 settings are wrong:"
    assert len(lines) == 7
    for variable_and_value, expected in (
        ("SMILE_SERVICE_KEY='...' (7 characters, not shown)", "smilesvc_"),
        ("SMILE_LOG_FORMAT='xml'", "'json' or 'console'"),
        ("SMILE_DEMO_PORT='70000'", "65535"),
        ("SMILE_DEMO_JOBS_MAX='many'", "integer"),
        ("SMILE_DEMO_DRAIN_S='-1'", "greater than or equal to 0"),
        ("SMILE_STORAGE_ADDRESS is not set", "required"),
    ):
        (line,) = [line for line in lines if variable_and_value in line]
        assert expected in line
    assert "hunter2" not in report


def test_one_fault_is_counted_as_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, SMILE_SERVICE_KEY=KEY)
    assert refused(capsys).startswith("1 setting is wrong:\n  SMILE_STORAGE_ADDRESS is not set")


def test_keys_are_never_shown_wherever_they_end_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    operator = new_key(KeyKind.OPERATOR).text
    give(
        monkeypatch,
        SMILE_SERVICE_KEY=operator,
        SMILE_STORAGE_ADDRESS="x",
        SMILE_DEMO_PORT=KEY,
        SMILE_DEMO_JOBS_MAX="9" * 500,
    )
    report = refused(capsys)
    assert operator not in report
    assert KEY not in report
    assert "9" * 101 not in report


class ListSettings(ServiceSettings):
    """A field that pydantic-settings reads as JSON."""

    numbers: list[int] = Field(default=[], validation_alias="SMILE_NUMBERS")


def test_text_that_is_no_json_is_a_wrong_setting_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give(monkeypatch, SMILE_SERVICE_KEY=KEY, SMILE_PORT="1", SMILE_NUMBERS="[1,")
    with pytest.raises(SystemExit) as caught:
        load(ListSettings)
    assert caught.value.code == EXIT_CONFIG
    assert "numbers" in capsys.readouterr().err


def test_secrets_do_not_show_in_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    give(monkeypatch, SMILE_SERVICE_KEY=KEY, SMILE_STORAGE_ADDRESS="storage:7001")
    assert KEY not in repr(load(DemoSettings))
