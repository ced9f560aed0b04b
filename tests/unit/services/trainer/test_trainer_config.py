"""Settings: all that are wrong are told at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.trainer.config import TrainerSettings
from smile.config import load
from smile.rpc.keys import KeyKind, new_key
from smile.standins import INCLUDED, StandInPlace


def test_defaults_are_enough_but_for_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_SERVICE_KEY", new_key(KeyKind.SERVICE).text)
    settings = load(TrainerSettings)
    assert (settings.port, settings.workers, settings.lease_s) == (7103, 1, 60.0)
    assert settings.queue.shares.of_all.queued_max == 100


def test_every_wrong_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = {
        "SMILE_TRAINER_PORT": "70000",
        "SMILE_TRAINER_WORKERS": "-1",
        "SMILE_TRAINER_LEASE_S": "soon",
        "SMILE_TRAINER_FOLDER": str(tmp_path / "none"),
        "SMILE_BACKBONES": "minilm",
        "SMILE_REDIS_URL": "http://:secret-password@here",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SMILE_SERVICE_KEY", raising=False)
    with pytest.raises(SystemExit) as caught:
        load(TrainerSettings)
    told = capsys.readouterr().err
    assert caught.value.code == 78
    assert all(name in told for name in (*wrong, "SMILE_SERVICE_KEY"))
    assert "secret-password" not in told


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("SHARES", "acme=speed:9", "a share is like"),
        ("OFF_PEAK", "always", "a window is like"),
        ("TIME_ZONE", "Mars/Olympus", "no time zone"),
    ],
)
def test_terms_of_the_queue_are_checked_at_start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    value: str,
    told: str,
) -> None:
    monkeypatch.setenv("SMILE_SERVICE_KEY", new_key(KeyKind.SERVICE).text)
    monkeypatch.setenv(f"SMILE_TRAINER_{name}", value)
    with pytest.raises(SystemExit):
        load(TrainerSettings)
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("skip", "tables", "domains", "told"),
    [
        ("minilm=here", "", "", "expected 'backbone=/absolute/path' or 'backbone=included'"),
        ("other=/here", "", "", "there is no backbone 'other'"),
        ("", "minilm=/table", "", "has a table and no local encoder"),
        ("", "", "minilm=/domains", "has domains and no local encoder"),
        ("minilm=included", "", "minilm=here", "SMILE_TRAINER_DOMAINS=minilm=here: expected"),
        ("minilm=included,minilm=/x", "", "", "repeats"),
    ],
)
def test_stand_ins_that_cannot_be_are_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    skip: str,
    tables: str,
    domains: str,
    told: str,
) -> None:
    monkeypatch.setenv("SMILE_SERVICE_KEY", new_key(KeyKind.SERVICE).text)
    monkeypatch.setenv("SMILE_TRAINER_SKIP", "minilm=included")
    monkeypatch.setenv("SMILE_TRAINER_TABLES", "minilm=/table")
    monkeypatch.setenv("SMILE_TRAINER_DOMAINS", "minilm=artifacts/fields")
    found = load(TrainerSettings)
    assert found.stand_ins == {
        "minilm": StandInPlace(INCLUDED, Path("/table"), found.artifacts / "fields"),
    }
    assert [str(name) for name in found.artifacts_wanted] == ["artifacts/fields"]
    monkeypatch.setenv("SMILE_TRAINER_SKIP", skip)
    monkeypatch.setenv("SMILE_TRAINER_TABLES", tables)
    monkeypatch.setenv("SMILE_TRAINER_DOMAINS", domains)
    with pytest.raises(SystemExit):
        load(TrainerSettings)
    assert told in capsys.readouterr().err
