"""The journeys of a tenant through SDK and command line, over real processes."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest

import smile
from smile import JobState, VersionOrigin
from smile.embedded import report
from tests.e2e.platforms import LABELS, Platform, command, rows

pytestmark = pytest.mark.e2e
REVOKED_S_MAX = 5.5  # keys are remembered for 5 s


def test_sdk_create_upload_train_infer_alias_usage(platform: Platform) -> None:
    with platform.client() as client:
        made = client.create_vplm("mood", backbone="toy", pet=smile.Pfeiffer(rank=8), labels=LABELS)
        fresh = client.infer("mood", "happy day")
        assert (fresh.origin, fresh.version) == (VersionOrigin.INITIAL, f"{made.name}/versions/1")

        client.upload_dataset("texts", rows())
        job = client.train("mood", "texts", epochs=15, learning_rate=1e-2, batch_size=16)
        events: list[smile.TrainingEvent] = []
        done = client.wait(job, on_event=events.append, timeout=120)
        assert (done.state, done.version) == (JobState.SUCCEEDED, f"{made.name}/versions/2")
        assert done.metrics["validation_accuracy"] >= 0.9
        assert any(metric.name == "train_loss" for event in events for metric in event.metrics)

        trained = _served(client, "mood", done.version)
        assert trained.origin is VersionOrigin.TRAINING
        assert trained.digest == client.version("mood").digest
        assert [
            _label(p) for p in client.infer("mood", ["happy love star", "war cold"]).predictions
        ] == ["good", "bad"]

        client.set_alias("mood", "first", 1)
        assert client.infer("mood", "happy day", alias="first").digest == fresh.digest

        usage = client.usage()
        row = usage.vplms[0]
        assert (row.name, row.versions) == (made.name, 2)
        assert 0 < row.serving_bytes < row.full_model_bytes


def test_kinds_of_pet_answer_side_by_side(platform: Platform) -> None:
    with platform.client() as client:
        kinds = {
            "lora": smile.LoRA(rank=4),
            "bitfit": smile.BitFit(),
            "houlsby": smile.Houlsby(4),
            "diff": smile.DiffPruning(),
            "mask": smile.MaskBert(),
        }
        for name, pet in kinds.items():
            client.create_vplm(name, backbone="toy", pet=pet, labels=LABELS)
        client.create_vplm("vectors", backbone="toy", pet=smile.BitFit())
        for name in kinds:
            assert len(client.infer(name, ["a good day", "a bad day"]).predictions) == 2
        vector = client.infer("vectors", "a good day").predictions[0].result
        assert isinstance(vector, smile.Embedding)
        assert sum(value**2 for value in vector.values) == pytest.approx(1.0, abs=1e-4)


def test_another_tenants_vplm_looks_absent(platform: Platform) -> None:
    with platform.client() as owner, platform.client() as stranger:
        made = owner.create_vplm("secret", backbone="toy", pet=smile.BitFit(), labels=LABELS)
        told = []
        for name in (made.name, made.name.replace("secret", "nothing")):
            with pytest.raises(smile.NotFound) as refused:
                stranger.infer(name, "hello")
            told.append((refused.value.reason, refused.value.message.replace(name, "NAME")))
        assert told[0] == told[1]
        assert list(stranger.vplms()) == []


def test_a_revoked_key_stops_working(platform: Platform) -> None:
    key = platform.new_key()
    with platform.client(key) as client:
        other = client.create_key("second")
        with platform.client(other.key) as second:
            assert second.backbones()
        client.revoke_key(other.api_key.name)
        revoked = time.monotonic()
        with platform.client(other.key) as second, pytest.raises(smile.Unauthenticated):
            while time.monotonic() < revoked + REVOKED_S_MAX:
                list(second.vplms())
                time.sleep(0.1)


def test_command_line_journey(platform: Platform, tmp_path: Path) -> None:
    environment = {"SMILE_API_KEY": platform.new_key(), "SMILE_ENDPOINTS": platform.endpoints}

    def ask(*arguments: str) -> dict[str, object]:
        done = command(*arguments, "--output", "json", environment=environment)
        assert done.returncode == 0, done.stderr
        last: dict[str, object] = json.loads(done.stdout)
        return last

    assert [b["name"] for b in ask("backbones")["backbones"]] == ["backbones/toy"]  # type: ignore[attr-defined]
    ask("create", "mood", "--backbone", "toy", "--pet", "lora", "--rank", "4",
        "--labels", "good,bad")  # fmt: skip
    file = tmp_path / "texts.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, ("text", "label"))
        writer.writeheader()
        writer.writerows(rows())
    ask("upload", "texts", str(file))
    trained = command(
        "train", "mood", "--dataset", "texts", "--epochs", "3", environment=environment
    )
    assert trained.returncode == 0, trained.stderr
    jobs = ask("jobs")["jobs"]
    assert [job["state"] for job in jobs] == ["succeeded"]  # type: ignore[attr-defined]
    answer = ask("infer", "mood", "happy day", "war")
    assert str(answer["version"]).endswith("/vplms/mood/versions/2")
    assert ask("usage")["vplm_count"] == 1
    assert len(ask("keys", "list")["api_keys"]) == 1  # type: ignore[arg-type]
    ask("delete", "mood", "--yes")
    missing = command("show", "mood", environment=environment)
    assert (missing.returncode, "NOT_FOUND" in missing.stderr) == (4, True)


def test_status_tells_every_process_and_its_memory(platform: Platform) -> None:
    code, services = platform.status()
    assert code == 0
    assert services.keys() == {
        "supervisor", "redis", "storage", "creator", "trainer", "processor",
    }  # fmt: skip
    for service in services.values():
        assert service["ready"] and service["live"]
        assert int(str(service["rss_bytes"])) > 2_000_000
        assert service["restarts"] == 0
    shown = command("status", "--data", str(platform.data))
    assert "total" in shown.stdout
    assert "processor" in shown.stdout


def test_up_on_a_running_platform_says_so(platform: Platform) -> None:
    done = command("up", "--data", str(platform.data))
    assert done.returncode == 0
    assert "runs on" in done.stderr
    assert platform.state.addresses["processor"] in done.stdout
    assert "SMILE_API_KEY=smile_" not in done.stdout


@pytest.mark.asyncio
async def test_liveness_and_readiness_are_told_apart(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is stopped (SIGSTOP) answers nothing: not live, though it runs."""
    pid = platform.child("creator").pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        found = await report(platform.data)
    finally:
        os.kill(pid, signal.SIGCONT)
    creator = next(service for service in found.services if service.name == "creator")
    assert (creator.live, creator.ready, found.ready) == (False, False, False)


def _served(client: smile.Client, vplm: str, version: str) -> smile.InferResult:
    """The answer of `version`, which the processor follows within its alias time (2 s)."""
    deadline = time.monotonic() + 10
    while True:
        result = client.infer(vplm, "happy day")
        if result.version == version or time.monotonic() > deadline:
            assert result.version == version
            return result
        time.sleep(0.1)


def _label(prediction: smile.Prediction) -> str:
    assert isinstance(prediction.result, smile.Classification)
    return prediction.result.label
