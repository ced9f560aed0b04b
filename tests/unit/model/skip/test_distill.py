"""Distillation on the toy backbone: it learns, and goes on where it was killed."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from smile.errors import DatasetInvalid, FailedPrecondition, InvalidArgument
from smile.model.backbone import Backbone
from smile.model.skip.artifact import read
from smile.model.skip.distill import run
from smile.model.skip.distill.__main__ import main
from smile.model.skip.distill.corpus import Pieces, batches, cut
from smile.model.skip.distill.documents import (
    Document,
    TextFiles,
    read_documents,
    split_documents,
)
from smile.model.skip.distill.measures import measure
from smile.model.skip.distill.run import Distillation, Job, Phase
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.distill.teacher import STATES_FILE, Teacher
from smile.model.skip.encoder import LocalEncoder
from smile.model.toy import WORDS

SETTINGS = DistillSettings(
    boundary=2,
    first=48,
    middle=48,
    after=20,
    context=4,
    epochs=4,
    near_share=0.5,
    batch_tokens=256,
    rate=5e-3,
)


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """Sentences of words that go with their label."""
    drawn = random.Random(0)
    words = [word for word in WORDS if not word.startswith("#")]
    return [
        Document(
            " ".join(
                " ".join(drawn.choices(words[label * 60 : label * 60 + 80], k=7)).capitalize() + "."
                for _ in range(4)
            ),
            "abc"[label],
        )
        for label in range(3)
        for _ in range(16)
    ]


@pytest.fixture(scope="module")
def pieces(toy: Backbone, documents: list[Document]) -> tuple[Pieces, Pieces]:
    learned, held_out = split_documents(documents, 0.2, 1)
    return cut(learned, toy.tokenizer, 64), cut(held_out, toy.tokenizer, 64)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def job(toy: Backbone, pieces: tuple[Pieces, Pieces], folder: Path) -> Job:
    folder.mkdir(exist_ok=True)
    return Job(toy, SETTINGS, *pieces, corpus="words", work=folder)


def test_it_learns_and_says_how_close_it_came(
    toy: Backbone, pieces: tuple[Pieces, Pieces], tmp_path: Path
) -> None:
    running = Distillation(job(toy, pieces, tmp_path))
    events = list(running.events())
    done = running.result()
    learning = [event for event in events if event.phase is Phase.LEARNING]
    assert [event.done for event in learning] == list(range(1, learning[0].total + 1))
    assert [event.phase for event in events[:1]] == [Phase.TEACHER]
    assert events[-1].phase is Phase.MEASURING
    untrained = measure(
        LocalEncoder(SETTINGS.form(toy.shape), toy), Teacher.of(toy, 2), pieces[1], 0
    )
    measures = done.file.facts.measures
    for layer in (2, 3, 4):
        assert measures[f"error_layer_{layer}"] < 0.8 * untrained[f"error_layer_{layer}"]
        assert measures[f"cosine_layer_{layer}"] > untrained[f"cosine_layer_{layer}"]
    assert {"probe_exact", "probe_materialized", "probe_exact_a"} <= measures.keys()
    assert done.file.facts.tokens == pieces[0].tokens
    assert done.file.facts.corpus_digest == pieces[0].digest
    assert done.curve[-1].loss < done.curve[0].loss


def test_killed_and_started_again_it_ends_with_the_same_bytes(
    toy: Backbone, pieces: tuple[Pieces, Pieces], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Distillation(job(toy, pieces, tmp_path / "whole"))
    list(whole.events())
    monkeypatch.setattr(run, "CHECKPOINT_S", 0.0)
    for _ in range(3):  # a generator that is dropped is a process that was killed
        events = Distillation(job(toy, pieces, tmp_path / "broken")).events()
        learned = (event for event in events if event.phase is Phase.LEARNING)
        for _, _ in zip(range(9), learned, strict=False):
            pass
    again = Distillation(job(toy, pieces, tmp_path / "broken"))
    first = next(event for event in again.events() if event.phase is Phase.LEARNING)
    assert first.done > 9
    again = Distillation(job(toy, pieces, tmp_path / "broken"))
    list(again.events())
    ours, theirs = again.result().file, whole.result().file
    for name, tensor in theirs.tensors.items():
        assert (ours.tensors[name] == tensor).all(), name
    assert [p.loss for p in again.result().curve] == [p.loss for p in whole.result().curve]


def test_it_can_begin_as_another_encoder(
    toy: Backbone, pieces: tuple[Pieces, Pieces], tmp_path: Path
) -> None:
    first = job(toy, pieces, tmp_path / "first")
    running = Distillation(first)
    list(running.events())
    parent = running.result().file
    on = replace(job(toy, pieces, tmp_path / "on"), parent=parent)
    further = Distillation(replace(on, settings=replace(SETTINGS, epochs=2)))
    list(further.events())
    done = further.result().file
    assert done.facts.parent == parent.digest
    assert done.facts.measures["error_layer_4"] < parent.facts.measures["error_layer_4"]
    other = replace(on, settings=replace(SETTINGS, middle=12), work=tmp_path)
    with pytest.raises(FailedPrecondition, match="middle=12"):
        Distillation(other)


def test_another_job_in_the_same_folder_is_refused(
    toy: Backbone, pieces: tuple[Pieces, Pieces], tmp_path: Path
) -> None:
    Distillation(job(toy, pieces, tmp_path))  # killed before its first step
    other = replace(job(toy, pieces, tmp_path), settings=replace(SETTINGS, seed=9))
    with pytest.raises(FailedPrecondition) as caught:
        Distillation(other)
    assert caught.value.reason == "DISTILLATION_DIFFERS"


def test_states_on_disk_are_those_computed(
    toy: Backbone, pieces: tuple[Pieces, Pieces], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Distillation(job(toy, pieces, tmp_path / "kept"))
    list(kept.events())
    assert (tmp_path / "kept" / STATES_FILE).stat().st_size == kept._targets.bytes
    monkeypatch.setattr("smile.model.skip.distill.teacher.DISK_SHARE_MAX", 0.0)
    computed = Distillation(job(toy, pieces, tmp_path / "computed"))
    list(computed.events())
    assert not (tmp_path / "computed" / STATES_FILE).exists()
    if kept._teacher.serving.kernels.native is None:
        pytest.skip("torch's own products depend on what they are batched with")
    ours, theirs = computed.result().file, kept.result().file
    assert all((ours.tensors[name] == tensor).all() for name, tensor in theirs.tensors.items())


def test_the_command_makes_a_file(
    toy_path: Path, documents: list[Document], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [json.dumps({"text": one.text, "label": one.label}) for one in documents]
    corpus.write_text("\n".join(rows))
    output = tmp_path / "encoder.safetensors"
    arguments = [
        f"toy=dir:{toy_path}", "--corpus", str(corpus), "--boundary", "2", "--first", "16",
        "--middle", "16", "--after", "8", "--context", "4", "--epochs", "1", "--threads", "1",
        "--output", str(output),
    ]  # fmt: skip
    assert main(arguments) == 0
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[0]["texts"] > 0
    assert said[-1]["result"]["digest"] == read(output).digest
    assert said[-1]["result"]["measures"] == read(output).facts.measures
    assert json.loads((tmp_path / "encoder.safetensors.curve.json").read_text())
    picture = ElementTree.fromstring((tmp_path / "encoder.safetensors.curve.svg").read_text())
    assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    assert not (tmp_path / "encoder.safetensors.work").exists()
    assert main([*arguments, "--boundary", "9"]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["error"]["reason"] == (
        "BACKBONE_MISMATCH"
    )


def test_batches_hold_every_text_once(pieces: tuple[Pieces, Pieces]) -> None:
    found = batches(pieces[0], 256, seed=1, epoch=0)
    assert sorted(one for batch in found for one in batch) == list(range(len(pieces[0].ids)))
    assert all(sum(len(pieces[0].ids[one]) for one in batch) <= 256 for batch in found)
    assert found == batches(pieces[0], 256, seed=1, epoch=0)
    assert found != batches(pieces[0], 256, seed=1, epoch=1)


def test_documents_are_read_by_kind(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("One two three four.\n\nFive six seven.\n")
    (tmp_path / "b.csv").write_text('text,label\n"Some words, here now",x\n')
    (tmp_path / "c.jsonl").write_text('{"text": "More words", "label": "y"}\n\n')
    (tmp_path / "d.pdf").write_text("nothing we read")
    lines = read_documents([tmp_path])
    assert [one.text for one in lines] == [
        "One two three four.", "Five six seven.", "Some words, here now", "More words",
    ]  # fmt: skip
    assert [one.label for one in lines] == ["", "", "x", "y"]
    whole = read_documents([tmp_path / "a.txt"], TextFiles.WHOLE)
    assert [one.sentences() for one in whole] == [["One two three four.", "Five six seven."]]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.txt", b"\xff\xfe", "byte 0 is not"),
        ("a.jsonl", b"{", "line 1 is not JSON"),
        ("a.jsonl", b"[1]", "line 1 must have a text"),
        ("a.csv", b"words\nx\n", "must have a text in column 'text'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetInvalid, match=why):
        read_documents([tmp_path / name])


def test_an_empty_corpus_is_refused(tmp_path: Path, toy: Backbone) -> None:
    (tmp_path / "a.txt").write_text(" \n")
    for paths in ([tmp_path], [tmp_path / "none"], [tmp_path / "a.txt"]):
        with pytest.raises(InvalidArgument, match="corpus"):
            read_documents(paths)
    with pytest.raises(InvalidArgument, match="at least 2 documents"):
        split_documents([Document("one"), Document("one")], 0.5, 0)
    with pytest.raises(InvalidArgument, match="at least 1 sentence"):
        cut([Document("two words")], toy.tokenizer, 64)


def test_settings_have_limits() -> None:
    for wrong in ({"boundary": 0}, {"epochs": 0}, {"rate": 0.0}, {"held_out_share": 0.9}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            replace(SETTINGS, **wrong)
