"""Bad input of materialised answers: odd texts, odd corpora, budgets too small."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from smile.errors import SmileError
from smile.representations import __main__ as builder
from smile.representations.manifest import read
from smile.representations.snapshot import Table
from smile.v1 import resources_pb2
from tests.contract.tables_world import MATERIALIZED, SEEN, TENANTS, VPLM, Asked, Ground, bits_of

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(400)]
EXACT = resources_pb2.EXACTNESS_EXACT
ODD = {
    "another script": "電影很好看",
    "many scripts": "кино 映画 영화 فيلم film",
    "one character": "a",
    "controls": "red\x00\x01\x7f blue",
    "emoji": "good \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 film",
    "right to left": "\u202egood film\u202c",
    "combining": "e\u0301" * 40,
    "one word many times": "good " * 100,
    "not in the table": "queen paris mother",
}
REFUSED = {
    "empty": ("", "TEXT_EMPTY"),
    "blank": (" \t\u00a0", "TEXT_EMPTY"),
    "too many tokens": ("red " * 400, "TEXT_TOO_LONG"),
    "too many characters": ("b" * 100_001, "TEXT_TOO_LONG"),
}


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground.at(tmp_path_factory.mktemp("ground"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def asked(ground: Ground) -> AsyncIterator[Asked]:
    async with ground.processor(ground.table("table"), learn=False) as made:
        yield made


async def _right(asked: Asked, ground: Ground, text: str, **wanted: Any) -> None:
    """The reference's answer, found or not, alone or in company."""
    alone = await asked.infer([text], **wanted)
    beside = await asked.infer([SEEN[0], text, SEEN[1]], **wanted)
    assert bits_of(alone)[0] == bits_of(beside)[1]
    module = asked.world.modules[f"tenants/{TENANTS[0]}/vplms/{VPLM}/versions/1"]
    expected = ground.encoder.expected(module, text).reshape(-1)
    scores = dict(bits_of(alone)[0])
    found = [scores[label] for label in module.spec.head.labels]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ODD)
async def test_odd_texts_have_the_answer_of_the_reference(
    asked: Asked, ground: Ground, case: str
) -> None:
    await _right(asked, ground, ODD[case])


async def test_a_long_text_is_cut_where_that_is_asked_for(asked: Asked, ground: Ground) -> None:
    text, _ = REFUSED["too many tokens"]
    await _right(asked, ground, text, truncate=True)
    assert (await asked.infer([text], truncate=True)).predictions[0].truncated


@pytest.mark.parametrize("case", REFUSED)
async def test_texts_are_refused_as_in_exact_mode(asked: Asked, case: str) -> None:
    text, reason = REFUSED[case]
    told = []
    for exactness in (MATERIALIZED, EXACT):
        with pytest.raises(SmileError) as caught:
            await asked.infer([SEEN[0], text], exactness=exactness)
        told.append((type(caught.value), caught.value.reason, caught.value.message))
    assert told[0] == told[1]
    assert told[0][1] == reason


def build(ground: Ground, output: Path, corpus: Path, **changed: str) -> int:
    """`smile tables build`'s process, in this one; its exit code."""
    stated = {
        "backbone": f"toy=dir:{ground.backbone}",
        "encoder": str(ground.encoder.path),
        "corpus": str(corpus),
        "budget-bytes": "1000000",
        "output": str(output),
    }
    return builder.main([f"--{name}={value}" for name, value in {**stated, **changed}.items()])


def refusal(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    return dict(said["error"])


NOTHING = {
    "a file without a byte": ("a.txt", b""),
    "white space alone": ("a.txt", b" \n\t\n\xc2\xa0\n"),
    "no rows": ("a.csv", b"text,label\n"),
    "no objects": ("a.jsonl", b"\n\n"),
    "a kind that is not read": ("inside/a.bin", b"good film"),
}
GARBAGE = {
    "not UTF-8": ("a.txt", b"good film\n\xff\xfe\x00\n", "byte 10"),
    "random bytes": ("a.csv", np.random.default_rng(3).bytes(4_096), "UTF-8"),
    "no column": ("a.csv", b"words\ngood film\n", "column 'text'"),
    "no JSON": ("a.jsonl", b'{"text": "good film"}\n{"text"', "line 2"),
    "no objects": ("a.jsonl", b"[[[]]]\n", "column 'text'"),
    "deep": ("a.jsonl", b"[" * 100_000, "line 1"),
}


@pytest.mark.parametrize("case", NOTHING)
async def test_an_empty_corpus_is_refused(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, content = NOTHING[case]
    corpus = tmp_path / "corpus" / name
    corpus.parent.mkdir(parents=True)
    corpus.write_bytes(content)
    assert build(ground, tmp_path / "tables" / "made", tmp_path / "corpus") == 1
    told = refusal(capsys)
    assert (told["class"], "at least 1 document, got 0" in told["message"]) == (
        "InvalidArgument",
        True,
    )
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize("case", GARBAGE)
async def test_a_corpus_of_garbage_is_refused_by_file_and_place(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    name, content, where = GARBAGE[case]
    corpus = tmp_path / name
    corpus.write_bytes(content)
    assert build(ground, tmp_path / "tables" / "made", corpus) == 1
    told = refusal(capsys)
    assert told["reason"] == "DATASET_INVALID"
    assert name in told["message"] and where in told["message"]
    assert not (tmp_path / "tables").exists()


@pytest.mark.parametrize(
    ("content", "rows"),
    [(b"good", 3), (b"\xe9\x9b\xbb", 3), (b"\x01\x02 good \x00\n", 3), (b"good\n" * 5_000, 3)],
    ids=["one word", "unknown", "controls", "one word over and over"],
)
async def test_a_corpus_of_one_word_is_a_table(
    ground: Ground, tmp_path: Path, content: bytes, rows: int
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_bytes(content)
    assert build(ground, tmp_path / "made", corpus) == 0
    assert read(tmp_path / "made").rows == rows
    async with ground.processor(tmp_path / "made", learn=False) as asked:
        text = content.decode().splitlines()[0].strip()
        assert await asked.missing([text]) == 0
        await _right(asked, ground, text)


async def test_a_budget_below_one_row_is_refused_and_one_of_a_row_is_not(
    ground: Ground, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(SEEN))
    for budget in (-1, 0, 1, 200):
        assert build(ground, tmp_path / "none", corpus, **{"budget-bytes": str(budget)}) == 1
        told = refusal(capsys)
        assert "one row" in told["message"] and f"got {budget}" in told["message"]
    least = int(told["message"].split("at least ")[1].split()[0])
    assert build(ground, tmp_path / "one", corpus, **{"budget-bytes": str(least)}) == 0
    assert Table.open(tmp_path / "one").manifest.rows == 1
    async with ground.processor(tmp_path / "one", learn=False) as asked:
        for text in SEEN:
            await _right(asked, ground, text)
    assert not any(tmp_path.glob(".*")) and not (tmp_path / "none").exists()  # noqa: ASYNC240
