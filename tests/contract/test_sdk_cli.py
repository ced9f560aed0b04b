"""The command line over real servers: what people see, what programs read, how it exits."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import smile
from smile.cli.app import build
from smile.model.skip.included import included_paths
from tests.contract.sdk_world import STEPS, World, overloaded, world_in_thread

Cli = Callable[..., Result]
CREATE = ("create", "topic", "--backbone", "toy", "--rank", "4", "--labels", "a,b")


@pytest.fixture
def platform() -> Iterator[World]:
    with world_in_thread("acme", "rival") as made:
        yield made


@pytest.fixture
def cli(platform: World, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("SMILE_API_KEY", platform.keys["acme"])
    monkeypatch.setenv("SMILE_ENDPOINTS", platform.endpoints)
    app = build()

    def run(*arguments: str, stdin: str | bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return run


def document(result: Result) -> Any:
    """The one JSON document on standard output."""
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def lines(result: Result) -> list[Any]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def csv_file(folder: Path, name: str = "News 2024.csv") -> Path:
    path = folder / name
    path.write_text("text,label\nshares rose,b\nthe match,a\nthe cup,a\n", encoding="utf-8")
    return path


def test_the_journey_for_people(cli: Cli, tmp_path: Path) -> None:
    found = cli("backbones")
    assert found.exit_code == 0 and re.search(r"toy +bert +4 +32 +128", found.stdout)
    made = cli(*CREATE[:-2], "--pet", "lora", "--labels-from", str(csv_file(tmp_path)))
    assert made.exit_code == 0, made.stderr
    assert re.search(r"pet +lora r4 \(query, value\) from layer 2", made.stdout)
    assert re.search(r"labels +a, b", made.stdout) and "created tenants/acme" in made.stderr
    assert re.search(r"topic +toy +lora r4 .*sequence-classification +2 +1 +1", cli("list").stdout)
    assert "aliases" in cli("show", "topic").stdout
    sent = cli("upload", "news", str(csv_file(tmp_path)))
    assert re.search(r"format +csv", sent.stdout) and "uploaded" in sent.stderr
    assert re.search(r"news +csv +47 B", cli("datasets", "list").stdout)
    trained = cli("train", "topic", "--dataset", "news", "--epochs", "3")
    assert trained.exit_code == 0, trained.stderr
    assert re.search(r"validation_accuracy +0\.9750", trained.stdout)
    assert "training, epoch 1 of 1" in trained.stderr and "queued" in trained.stderr
    (job,) = set(re.findall(r"trainingJobs/(\w+)", trained.stdout))
    refused = cli("train", "topic", "--dataset", "news", "--class-weight", "sport")
    assert refused.exit_code == 2 and "LABEL=WEIGHT" in refused.stderr
    assert re.search(rf"{job} +topic +news +succeeded", cli("jobs").stdout)
    assert re.search(rf"{job} +topic +news +succeeded", cli("jobs", "--limit", "1").stdout)
    shown = cli("jobs", "show", job).stdout
    assert re.search(r"a +1\.0000 +0\.7500 +0\.8571 +4", shown), shown
    assert re.search(r"PER +0\.2500 +0\.5000 +0\.3333 +2", shown)
    assert re.search(r"a +3 +1\n", shown) and re.search(r"torch +2\.13", shown)
    assert re.search(r"state +succeeded", cli("watch", job).stdout)
    answer = cli("infer", "topic", "four", "[bold]x")
    assert re.search(r"four +4 +0\.7500", answer.stdout)
    assert re.search(r"\[bold\]x +7 +0\.7500", answer.stdout)
    assert "versions/1 (training) in 4.0 ms" in answer.stderr
    many = cli("infer-fanout", "four", "topic", "absent", "topic@serving")
    assert len(re.findall(r"topic\S* +4 +0\.7500 +1", many.stdout)) == 2
    assert "does not exist" in many.stdout and many.exit_code == 4
    asked = cli("infer-fanout", "four", "topic", "absent", "-o", "json")
    first, second = json.loads(asked.stdout)["entries"]
    assert (first["vplm"], first["prediction"]["label"]) == ("topic", "4")
    assert (second["vplm"], second["error"]["reason"]) == ("absent", "NOT_FOUND")
    usage = cli("usage")
    assert re.search(r"topic +1 .*9\d\.\d\d %", usage.stdout) and "of 1.1 GB" in usage.stdout
    assert cli("delete", "topic", "--yes").exit_code == 0
    assert cli("show", "topic").exit_code == 4


def test_the_journey_for_programs(cli: Cli, tmp_path: Path) -> None:
    def run(*arguments: str) -> Result:
        return cli(*arguments, "--output", "json")

    assert document(run("backbones"))["backbones"][0]["shape"]["layers"] == 4
    made = document(run(*CREATE))
    assert (made["name"], made["spec"]["pet"]["rank"]) == ("tenants/acme/vplms/topic", 4)
    assert made["spec"]["dtype"] == "float16" and made["create_time"].endswith("+00:00")
    assert [v["name"] for v in document(run("list"))["vplms"]] == [made["name"]]
    assert document(run("show", "topic"))["etag"] == made["etag"]
    sent = document(run("upload", "news", str(csv_file(tmp_path))))
    assert (sent["format"], sent["size_bytes"]) == ("csv", 47)
    assert document(run("datasets", "list"))["datasets"] == [sent]
    result = run("datasets", "validate", "news", "topic", "--label-column", "y")
    report = json.loads(result.stdout)
    assert result.exit_code == 3
    assert report["problems"][0] == {
        "row": 3, "column": "y", "reason": "LABEL_UNKNOWN", "message": "label 'x' is unknown",
    }  # fmt: skip
    job = document(run("train", "topic", "--dataset", "news", "--detach", "--promote", "-"))
    assert (job["state"], job["promote_alias"]) == ("queued", "")
    events = lines(run("watch", job["name"]))
    assert len(events) == 2 * STEPS + 2
    assert events[-1]["job"]["metrics"] == {"validation_accuracy": 0.975}
    assert events[2]["metrics"] == [{"name": "train_loss", "value": 1.0, "step": 1, "epoch": 1}]
    rest = lines(run("watch", job["name"], "--resume-token", events[3]["resume_token"]))
    assert rest == events[4:]
    assert document(run("jobs"))["jobs"][0]["state"] == "succeeded"
    shown = document(run("jobs", "show", job["name"]))
    assert shown["summary"]["confusion"] == [[3, 1], [0, 1]]
    assert shown["summary"]["classes"][1]["support"] == 1
    answer = document(run("infer", "topic", "four", "--top-k", "1"))
    (prediction,) = answer["predictions"]
    assert (prediction["label"], prediction["score"]) == ("4", 0.75)
    assert answer["version"].endswith("versions/1") and answer["timings"]["batch_texts"] == 1
    usage = document(run("usage"))
    assert usage["vplms"][0]["full_model_bytes"] > usage["vplms"][0]["serving_bytes"]
    assert document(run("cancel", job["name"]))["state"] == "cancelled"
    assert document(run("datasets", "delete", "news")) == {"deleted": "news"}
    assert document(run("delete", "topic")) == {"deleted": "topic"}


def test_keys_and_versions_for_programs(cli: Cli, tmp_path: Path) -> None:
    def run(*arguments: str) -> Result:
        return cli(*arguments, "--output", "json")

    document(run(*CREATE))
    made_key = document(run("keys", "create", "--display-name", "ci"))
    assert made_key["key"].startswith("smile_acme_k")
    key = made_key["api_key"]["name"].rpartition("/")[2]
    assert document(run("keys", "revoke", key)) == {"revoked": key}
    listed = document(run("keys", "list"))["api_keys"]
    assert [k["display_name"] for k in listed if k["revoke_time"]] == ["ci"]
    versions = document(run("versions", "list", "topic"))["versions"]
    path = tmp_path / "w.safetensors"
    assert document(run("versions", "download", "topic", str(path))) == versions[0]
    stored = document(run("versions", "upload", "topic", str(path), "--note", "mine"))
    assert (stored["origin"], stored["note"]) == ("import", "mine")
    split = document(run("alias", "topic", "serving", "1", "--canary", "2", "--weight", "0.25"))
    assert split["canaries"] == {"serving": {"version": 2, "weight": 0.25}}
    assert "1, and 2 for 0.25 of requests" in cli("show", "topic").stdout
    listed_versions = cli("versions", "list", "topic").stdout
    assert "serving 0.75" in listed_versions and "serving 0.25" in listed_versions
    promoted = document(run("alias", "topic", "serving", "2"))
    assert (promoted["aliases"], promoted["canaries"]) == ({"serving": 2}, {})


def test_processors_are_rented_listed_and_released(cli: Cli) -> None:
    rented = cli(
        "rent", "topic", "--weight", "2", "--rate", "50", "--burst", "90", "--pin", "--wait"
    )
    assert rented.exit_code == 0, rented.stderr
    assert "weight 2, 50 texts/s (90 at once), pinned; it is hot" in rented.stderr
    plain = document(cli("rent", "other", "--idle", "60", "--concurrency", "3", "-o", "json"))
    assert plain["terms"]["idle_s"] == 60 and plain["terms"]["concurrency_max"] == 3
    assert plain["state"] == "cold"
    shown = cli("processors").stdout
    assert re.search(r"topic +hot +weight 2, 50 texts/s", shown)
    assert re.search(r"other +cold +weight 1, 3 at a time, cold after 60 s", shown)
    listed = document(cli("processors", "-o", "json"))["processors"]
    assert [each["name"].rpartition("/")[2] for each in listed] == ["topic", "other"]
    assert document(cli("release", "topic", "-o", "json")) == {"released": "topic"}
    assert cli("release", "topic").exit_code == 4
    assert cli("rent", "topic", "--weight", "99").exit_code == 3


def test_stats_are_shown(cli: Cli) -> None:
    assert re.search(r"texts total +7", cli("stats").stdout)
    assert document(cli("stats", "-o", "json"))["texts_total"] == 7


def test_training_on_a_file_uploads_it_once(cli: Cli, tmp_path: Path) -> None:
    cli(*CREATE)
    first = cli("train", "topic", "--data", str(csv_file(tmp_path)), "--detach")
    (dataset,) = re.findall(r"datasets/(news-2024-[0-9a-f]{12})", first.stdout)
    assert f"uploaded {dataset}" in first.stderr
    again = cli("train", "topic", "--data", str(csv_file(tmp_path)), "--detach")
    assert f"{dataset} is there already" in again.stderr and again.exit_code == 0
    assert len(document(cli("datasets", "list", "-o", "json"))["datasets"]) == 1


@pytest.mark.parametrize("source", ["--file", "stdin"])
def test_texts_from_a_stream_are_answered_line_by_line(
    cli: Cli, tmp_path: Path, source: str
) -> None:
    texts = ["shares rose", "Fußball", "x" * 70]
    data = "\n".join(texts).encode()
    (tmp_path / "texts.txt").write_bytes(data)
    where = ["--file", str(tmp_path / "texts.txt")] if source == "--file" else []
    found = lines(cli("infer", "topic", *where, "-o", "json", stdin=data))
    assert [(row["text"], row["label"]) for row in found] == [(t, str(len(t))) for t in texts]
    shown = cli("infer", "topic", *where, stdin=data).stdout.splitlines()
    assert shown[1] == "7\t0.7500\tFußball"


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("frobnicate",), 2, None),
        (("create", "topic"), 2, None),
        (("create", "topic", "--backbone", "toy", "--pet", "magic"), 2, None),
        (("train", "topic"), 2, None),
        (("train", "topic", "--dataset", "a", "--data", "b.csv"), 2, None),
        (("infer", "topic", "x", "--file", "y"), 2, None),
        (("create", "../x", "--backbone", "toy", "--labels", "a,b"), 3, "INVALID_NAME"),
        (("create", "x", "--backbone", "toy", "--labels", "a"), 3, "INVALID_SPEC"),
        (("create", "x", "--backbone", "toy", "--pet", "bitfit", "--rank", "3"), 3, "INVALID_SPEC"),
        (("create", "x", "--backbone", "toy", "--alpha", "3"), 3, "INVALID_SPEC"),
        (("upload", "x", "/no/such.csv"), 3, "FILE_UNREADABLE"),
        (("train", "topic", "--data", "/no/such.csv"), 4, "NOT_FOUND"),
        (("train", "topic", "--dataset", "x", "--epochs", "0"), 3, "INVALID_SPEC"),
        (("infer", "topic", "--file", "/no/such.txt"), 3, "FILE_UNREADABLE"),
        (("infer", "topic", "\udcff"), 3, "TEXT_NOT_UTF8"),
        (("backbones", "--endpoints", "gateway=x:1"), 3, "ENDPOINTS_INVALID"),
        (("show", "absent"), 4, "NOT_FOUND"),
        (("show", "tenants/rival/vplms/x"), 4, "NOT_FOUND"),
        (("infer", "absent", "x"), 4, "NOT_FOUND"),
        (("watch", "absent"), 4, "NOT_FOUND"),
        (("tenants", "list"), 5, "ROLE_NOT_ALLOWED"),
        (("list", "--api-key", "wrong"), 5, "KEY_INVALID"),
        (("list", "--api-key", ""), 5, "KEY_MISSING"),
        (("usage", "--endpoints", "storage=localhost:1"), 8, "DEPENDENCY_UNAVAILABLE"),
    ],
)
def test_failures_have_their_exit_code_and_reason(
    cli: Cli, arguments: tuple[str, ...], code: int, reason: str | None
) -> None:
    result = cli(*arguments)
    assert (result.exit_code, result.stdout) == (code, ""), result.stderr
    if reason is None:
        return
    assert result.stderr.startswith("error: ") and result.stderr.rstrip().endswith(f"({reason})")
    assert len(result.stderr.splitlines()) == 1
    result = cli(*arguments, "--output", "json")
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, result.stdout, error["reason"]) == (code, "", reason)
    assert set(error) == {"reason", "message", "metadata", "retry_after", "violations"}


def test_conflicts_limits_and_deadlines_have_theirs(cli: Cli, platform: World) -> None:
    assert cli(*CREATE).exit_code == 0
    assert cli(*CREATE).exit_code == 6
    for failure, code in (
        (smile.QuotaExceeded("no more"), 7),
        (overloaded(retry_after=120), 7),
        (smile.DeadlineExceeded("late"), 9),
        (smile.FailedPrecondition("not now"), 6),
        (smile.Aborted("changed"), 6),
        (smile.DataCorrupted("bad"), 1),
        (smile.Internal("oops"), 1),
        (smile.TextTooLong("texts[0] has 600 tokens"), 3),
    ):
        platform.processor.failures = [failure]
        result = cli("infer", "topic", "x", "-o", "json")
        assert (result.exit_code, result.stdout) == (code, "")
        assert json.loads(result.stderr)["error"]["reason"] == failure.reason


def test_nothing_is_uploaded_for_a_job_that_cannot_be(cli: Cli, tmp_path: Path) -> None:
    data = str(csv_file(tmp_path))
    assert cli("train", "topic", "--data", data).exit_code == 4
    cli(*CREATE)
    assert cli("train", "topic", "--data", data, "--learning-rate", "-1").exit_code == 3
    assert cli("train", "topic", "--data", "/no/such.csv").exit_code == 3
    assert document(cli("datasets", "list", "-o", "json")) == {"datasets": []}


def test_a_failed_job_exits_with_10_and_its_report(cli: Cli, platform: World) -> None:
    report = smile.DatasetReport(2, 1, (smile.RowProblem(2, "label", "LABEL_UNKNOWN", "no x"),), 1)
    platform.trainer.fails_with = smile.JobError("DATASET_INVALID", "1 of 2 rows is bad", report)
    result = cli("train", "topic", "--dataset", "rows")
    assert result.exit_code == 10
    assert re.search(r"2 +label +LABEL_UNKNOWN +no x", result.stdout)
    assert "1 of 2 rows is bad (DATASET_INVALID)" in result.stderr
    result = cli("train", "topic", "--dataset", "rows", "-o", "json")
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, error["reason"]) == (10, "DATASET_INVALID")
    assert error["job"]["error"]["dataset_report"]["problems"][0]["row"] == 2


def test_operators_keep_artifacts(
    cli: Cli, platform: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("SMILE_API_KEY", platform.operator_key)
    encoder = next(included_paths())
    push = ("artifacts", "push", "skip", str(encoder))
    pushed = document(cli(*push, "--note", "ours", "-o", "json"))
    assert (pushed["name"], pushed["kind"]) == ("artifacts/skip", "encoder")
    assert "encoder" in cli("artifacts", "list").stdout
    pulled = tmp_path / "pulled"
    assert cli("artifacts", "pull", "skip", str(pulled)).exit_code == 0
    assert pulled.read_bytes() == encoder.read_bytes()
    assert cli(*push).exit_code == 6
    assert cli("artifacts", "rm", "skip").exit_code == 0
    assert cli("artifacts", "pull", "skip", str(tmp_path / "again")).exit_code == 4


def test_operators_make_tenants(cli: Cli, platform: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_API_KEY", platform.operator_key)
    made = cli("tenants", "create", "bulk", "--display-name", "Bulk", "--quota-bytes", "5000")
    assert made.exit_code == 0 and made.stdout.strip().startswith("smile_bulk_k")
    assert re.search(r"bulk +Bulk +5\.0 KB", cli("tenants", "list").stdout)
    assert cli("keys", "list", "--tenant", "bulk").exit_code == 0
    monkeypatch.setenv("SMILE_API_KEY", made.stdout.strip())
    assert cli("list").exit_code == 0


def test_deleting_asks_first(cli: Cli) -> None:
    cli(*CREATE)
    assert cli("delete", "topic", stdin="n\n").exit_code != 0
    assert cli("show", "topic").exit_code == 0
    assert cli("delete", "topic", stdin="y\n").exit_code == 0


def test_no_key_and_no_colour_off_a_terminal(platform: World) -> None:
    command = [sys.executable, "-c", "from smile.cli import main; main()", "infer", "absent", "x"]
    environment = {"SMILE_ENDPOINTS": platform.endpoints, "FORCE_COLOR": ""}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (result.returncode, result.stdout) == (5, "")
    assert result.stderr == (
        "error: no API key: give api_key, or set SMILE_API_KEY in the environment (KEY_MISSING)\n"
    )
    environment["SMILE_API_KEY"] = platform.keys["acme"]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 4 and "\x1b" not in result.stderr
    assert platform.keys["acme"] not in result.stderr
