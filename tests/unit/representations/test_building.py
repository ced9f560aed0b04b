"""`python -m smile.representations` and `smile tables`: a table of a real encoder's own rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from smile.cli import children, tables
from smile.cli.exits import Exit
from smile.errors import FailedPrecondition, Internal, InvalidArgument
from smile.model.backbone import Backbone
from smile.model.kernels.merge import TorchMerge
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.packing import pack
from smile.model.skip import artifact
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.form import EncoderForm
from smile.model.skip.ngrams import ngram_keys, ngrams_from
from smile.model.skip.rows import EncoderRows
from smile.model.toy import write_toy_backbone
from smile.representations import __main__ as builder
from smile.representations.manifest import KEYS_FILE, ROWS_FILE
from smile.representations.snapshot import Table

TEXTS = ["the cat sat. The cat ran.", "a dog ran away"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone, a local encoder of random weights and a corpus."""
    folder = tmp_path_factory.mktemp("place")
    write_toy_backbone(folder / "toy")
    backbone = Backbone.load(folder / "toy", "toy")
    torch.manual_seed(0)
    form = EncoderForm(1, backbone.shape.hidden, 16, 16, 16)
    encoder = LocalEncoder(form, backbone)
    stored = {name: tensor.numpy() for name, tensor in encoder.tensors().items()}
    facts = artifact.EncoderFacts("toy", backbone.digest, form)
    (folder / "encoder").write_bytes(artifact.encode(facts, stored))
    (folder / "corpus.txt").write_text("\n".join(TEXTS))
    return folder


def _arguments(place: Path, output: Path, **changed: str) -> list[str]:
    stated = {
        "backbone": f"toy=dir:{place / 'toy'}",
        "encoder": str(place / "encoder"),
        "corpus": str(place / "corpus.txt"),
        "budget-bytes": "1000000",
        "output": str(output),
    }
    return [f"--{name}={value}" for name, value in {**stated, **changed}.items()]


@pytest.mark.parametrize("dtype", list(RowDtype))
def test_a_table_of_an_encoders_rows(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: RowDtype
) -> None:
    """Every n-gram of the corpus has the row that the encoder computes, to the bit."""
    assert builder.main(_arguments(place, tmp_path / "table", dtype=dtype)) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    backbone = Backbone.load(place / "toy", "toy")
    encoder = EncoderRows.load(place / "encoder", backbone)
    table = Table.open(tmp_path / "table", encoder.origin, verify=True)
    assert said[-1] == {"result": {"digest": table.digest, "path": str(tmp_path / "table")}}
    assert {line["step"] for line in said[:-1]} == {"count", "rows"}
    texts = backbone.tokenizer.encode([*TEXTS, "the cat sat.", "The cat ran."])
    keys = ngram_keys(pack([text.ids for text in texts]), encoder.outside)
    numbers = table.find(keys.numpy())
    assert (numbers >= 0).all()
    with torch.inference_mode():
        rows = encoder.encoder.rows(ngrams_from(keys))
    truth = TorchMerge().pack_rows(rows, table.format).numpy()
    assert (table.store.rows[numbers] == truth).all()
    assert table.manifest.corpus.texts == 4
    assert table.manifest.corpus.covered == table.manifest.corpus.tokens == len(keys)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"encoder": "/nowhere"}, "FAILED_PRECONDITION"),
        ({"corpus": "/nowhere"}, "INVALID_ARGUMENT"),
        ({"budget-bytes": "5"}, "INVALID_ARGUMENT"),
        ({"backbone": "toy"}, "INVALID_ARGUMENT"),
    ],
)
def test_refusals_are_said(
    place: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, str],
    reason: str,
) -> None:
    assert builder.main(_arguments(place, tmp_path / "table", **changed)) == 1
    error = json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert error["reason"] == reason
    assert not (tmp_path / "table").exists()


@pytest.fixture
def cli() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    tables.register(app)

    @app.callback()
    def _several() -> None:
        """Commands keep their names."""

    return app


def test_built_and_shown_by_commands(place: Path, tmp_path: Path, cli: typer.Typer) -> None:
    run, folder = CliRunner().invoke, tmp_path / "table"
    given = [
        *("tables", "build", str(folder), "--backbone", f"toy=dir:{place / 'toy'}"),
        *("--encoder", str(place / "encoder"), "--corpus", str(place / "corpus.txt")),
    ]
    small = run(cli, [*given, "--budget", "5"])
    assert small.exit_code == Exit.INVALID and "budget must be at least" in small.output
    built = run(cli, [*given, "--budget", "1MB", "--dtype", "int8", "-o", "json"])
    assert built.exit_code == 0, built.output
    stated = json.loads(built.stdout)
    assert stated["dtype"] == "int8" and stated["rows"] == stated["corpus"]["ngrams"] > 10
    again = run(cli, [*given, "--budget", "1MB"])
    assert again.exit_code == Exit.CONFLICT and "is there already" in again.output
    shown = run(cli, ["tables", "show", str(folder), "--verify"])
    assert shown.exit_code == 0 and stated["digest"] in shown.output
    assert "every byte" in shown.output
    rows = folder / ROWS_FILE
    rows.write_bytes(bytes(len(rows.read_bytes())))
    assert run(cli, ["tables", "show", str(folder)]).exit_code == 0
    broken = run(cli, ["tables", "show", str(folder), "--verify"])
    assert broken.exit_code == Exit.INTERNAL and "must have SHA-256" in broken.output
    (folder / KEYS_FILE).unlink()
    lost = run(cli, ["tables", "show", str(folder)])
    assert lost.exit_code == Exit.INTERNAL and f"has lost its {KEYS_FILE}" in lost.output
    nothing = run(cli, ["tables", "show", str(tmp_path)])
    assert nothing.exit_code == Exit.CONFLICT


@pytest.mark.parametrize(
    ("text", "size"),
    [("5", 5), ("500MB", 5 * 10**8), ("2GiB", 2 << 30), ("1.5 KiB", 1536), ("7B", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert tables.bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "5 apples", "1e3", "5mb"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(InvalidArgument, match="must be like 500MB or 2GiB"):
        tables.bytes_of(text)


def test_backbones_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMILE_BACKBONES", "one=dir:/one,two=wheel:two")
    assert str(tables.source_of("two")) == "two=wheel:two"
    assert str(tables.source_of("three=dir:/three")) == "three=dir:/three"
    with pytest.raises(InvalidArgument, match="one of one, two"):
        tables.source_of("three")


def _speaking(folder: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / "speaking.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return "speaking"


def test_a_process_that_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = """print('{"done": 1}'); print('{"result": {"it": 2}}')"""
    said: list[object] = []
    module = _speaking(tmp_path, source, monkeypatch)
    assert children.result_of(module, [], said.append) == {"it": 2}
    assert said == [{"done": 1}]


@pytest.mark.parametrize(
    ("source", "kind", "why"),
    [
        ("raise SystemExit('no words')", Internal, "ended with 1: no words"),
        ("import os; os.kill(os.getpid(), 9)", Internal, "ended with -9"),
        ("import nothing_of_the_kind", FailedPrecondition, r"install smile-platform\[embedded\]"),
        (
            'print(\'{"error": {"class": "InvalidArgument", "reason": "R", "message": "m"}}\')',
            InvalidArgument,
            "m",
        ),
    ],
)
def test_a_process_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, kind: type[Exception], why: str
) -> None:
    module = _speaking(tmp_path, source, monkeypatch)
    with pytest.raises(kind, match=why):
        children.result_of(module, [], lambda said: None)


def test_rows_are_the_same_whatever_they_are_beside(place: Path) -> None:
    backbone = Backbone.load(place / "toy", "toy")
    encoder = EncoderRows.load(place / "encoder", backbone)
    row_format = RowFormat(RowDtype.FLOAT16, encoder.origin.width)
    chance = np.random.default_rng(0)
    ids = chance.integers(0, encoder.vocab, (50, 3))
    keys = ids[:, 0] << 42 | ids[:, 1] << 21 | ids[:, 2]
    together = encoder.packed(keys, row_format)
    for at in (0, 17, 49):
        assert (encoder.packed(keys[at : at + 1], row_format) == together[at]).all()
