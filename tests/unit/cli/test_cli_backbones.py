"""`smile backbones distill | encoder` in real processes, on the toy backbone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from smile.cli.app import build
from smile.cli.backbones import SPARKS, SPARKS_MAX, sparkline
from smile.model.skip.artifact import read
from smile.model.skip.policy import MissPolicy
from smile.model.toy import WORDS, write_toy_backbone

PATIENCE_S = 150.0
LEARNED_STEPS = 5


def smile(*arguments: str) -> Result:
    return CliRunner().invoke(build(), list(arguments))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("distill")
    write_toy_backbone(made / "toy")
    words = [word for word in WORDS if not word.startswith("#")]
    lines = [" ".join(words[at : at + 9]).capitalize() + "." for at in range(100)]
    (made / "corpus.txt").write_text("\n".join(lines))
    return made


def arguments(folder: Path, to: str, epochs: int) -> list[str]:
    return [
        "backbones", "distill", f"toy=dir:{folder / 'toy'}", "--boundary", "2",
        "--corpus", str(folder / "corpus.txt"), "--epochs", str(epochs), "--width", "16",
        "--first", "16", "--after", "8", "--context", "4", "--threads", "1",
        "--to", str(folder / to),
    ]  # fmt: skip


def test_people_see_how_close_it_came(folder: Path) -> None:
    made = smile(*arguments(folder, "people.safetensors", 2))
    assert made.exit_code == 0, made.stderr
    assert read(folder / "people.safetensors").digest in made.stdout
    assert "cosine layer 2" in made.stdout and any(spark in made.stdout for spark in SPARKS)
    shown = smile("backbones", "encoder", str(folder / "people.safetensors"))
    assert shown.exit_code == 0 and shown.stdout.splitlines()[1] == made.stdout.splitlines()[1]


def test_programs_read_json(folder: Path) -> None:
    made = smile(*arguments(folder, "programs.safetensors", 1), "--output", "json")
    assert made.exit_code == 0, made.stderr
    result = json.loads(made.stdout)
    shown = smile("backbones", "encoder", str(folder / "programs.safetensors"), "-o", "json")
    stated = json.loads(shown.stdout)
    assert result["digest"] == stated["digest"] == read(folder / "programs.safetensors").digest
    assert result["measures"] == stated["measures"] and stated["form"]["middle"] == 16


def test_another_policy_is_distilled_by_the_same_command(folder: Path) -> None:
    wished = ("--rows", "layers", "--policy", "shorter", "--dropout", "0.4")
    made = smile(*arguments(folder, "shorter.safetensors", 1), *wished)
    assert made.exit_code == 0, made.stderr
    assert "2 layers over trigrams" in made.stdout and "shorter n-grams" in made.stdout
    stated = read(folder / "shorter.safetensors").facts
    assert stated.policy is MissPolicy.SHORTER and stated.form.layers == 2


def test_killed_it_goes_on_to_the_same_file(folder: Path) -> None:
    """The distiller itself is killed, in its second epoch, and told to do the same again."""
    whole = smile(*arguments(folder, "whole.safetensors", 30))
    assert whole.exit_code == 0, whole.stderr
    broken = folder / "broken.safetensors"
    command = [
        sys.executable, "-c",
        "import sys\nfrom smile.model.skip.distill import __main__ as m, run\n"
        "run.CHECKPOINT_S = 0.0\nm.SAY_EVERY_S = 0.0\nsys.exit(m.main())",
        f"toy=dir:{folder / 'toy'}", "--boundary", "2", "--corpus", str(folder / "corpus.txt"),
        "--epochs", "30", "--middle", "16", "--first", "16", "--after", "8", "--context", "4",
        "--threads", "1", "--output", str(broken),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line).get("event", {})
            if event.get("phase") == "learning" and event["done"] >= LEARNED_STEPS:
                break
        os.kill(process.pid, signal.SIGKILL)
    assert not broken.exists()
    assert (folder / "broken.safetensors.work" / "checkpoint.safetensors").is_file()
    again = smile(*arguments(folder, "broken.safetensors", 30))
    assert again.exit_code == 0, again.stderr
    ours, theirs = read(broken).tensors, read(folder / "whole.safetensors").tensors
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_who_interrupts_is_told_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("smile.cli.backbones.result_of", interrupted)
    ended = smile(*arguments(folder, "interrupted.safetensors", 1))
    assert ended.exit_code == 130 and "the same command goes on" in ended.stderr


def test_only_one_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = folder / "locked.safetensors.work"
    work.mkdir()
    holder = [
        sys.executable, "-c",
        "import fcntl, sys\nfile = open(sys.argv[1], 'w')\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('held', flush=True)\nsys.stdin.read()",
        str(work / "lock"),
    ]  # fmt: skip
    with subprocess.Popen(
        holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        began = time.monotonic()
        refused = smile(*arguments(folder, "locked.safetensors", 1), "-o", "json")
        assert time.monotonic() - began < PATIENCE_S
        process.communicate("")
    assert refused.exit_code == 6
    assert json.loads(refused.stderr)["error"]["reason"] == "DISTILLATION_RUNS"


@pytest.mark.parametrize(
    ("change", "exit_code", "reason"),
    [
        (("--boundary", "9"), 6, "BACKBONE_MISMATCH"),
        (("--boundary", "0"), 3, "INVALID_ARGUMENT"),
        (("--policy", "shorter", "--dropout", "2"), 3, "INVALID_ARGUMENT"),
        (("--corpus", "/nowhere.txt"), 3, "INVALID_ARGUMENT"),
        (("--parent", "/nowhere"), 6, "FAILED_PRECONDITION"),
    ],
)
def test_refusals_reach_programs(
    folder: Path, change: tuple[str, ...], exit_code: int, reason: str
) -> None:
    refused = smile(*arguments(folder, "refused.safetensors", 1), *change, "-o", "json")
    assert refused.exit_code == exit_code, refused.stderr
    assert json.loads(refused.stderr)["error"]["reason"] == reason
    assert not (folder / "refused.safetensors").exists()


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([1.0]) == SPARKS[0]
    assert sparkline([3.0, 2.0, 1.0])[0] == SPARKS[-1]
    assert len(sparkline([float(at) for at in range(1_000)])) == SPARKS_MAX
