"""Domains in a folder: which are there, and how one goes."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from smile.errors import DataCorrupted, FailedPrecondition, InvalidName, NotFound
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.representations import places
from smile.representations.build import TableWish, write
from smile.representations.counting import NgramCounts
from smile.representations.manifest import MANIFEST_FILE, CorpusFacts, DeltaFacts
from smile.representations.snapshot import Table
from tests.unit.representations.fakes import WIDTH, FakeEncoder

FORMAT = RowFormat(RowDtype.FLOAT16, WIDTH)


def _make(folder: Path, name: str, parent: str = "general") -> Path:
    place = folder / name
    place.mkdir(parents=True)
    chosen = NgramCounts(np.arange(5, dtype=np.int64), np.ones(5, np.int64))
    facts = DeltaFacts(0.5, 0.05, 1, "")
    wish = TableWish(
        FORMAT, 1 << 20, 1000, domain=name, parent=parent, parent_encoder="e", delta=facts
    )
    write(place / places.TABLE, chosen, CorpusFacts("", 0, 0, 0, 0), FakeEncoder(), wish)
    (place / places.ENCODER).write_bytes(b"weights")
    (place / places.CURVE).write_text("[]")
    return place


def test_what_is_removed_is_gone_and_all_else_stays(tmp_path: Path) -> None:
    for name, parent in (("news", "general"), ("sport", "news"), ("law", "general")):
        _make(tmp_path, name, parent)
    (tmp_path / ".news.work").mkdir()
    places.remove(tmp_path, "sport")
    assert sorted(each.name for each in tmp_path.iterdir()) == [".news.work", "law", "news"]
    places.remove(tmp_path, "news")
    assert [name for name, _ in places.domains_in(tmp_path)] == ["law"]
    _make(tmp_path, "news")
    assert [name for name, _ in places.domains_in(tmp_path)] == ["law", "news"]


def test_refused(tmp_path: Path) -> None:
    for name, parent in (("news", "general"), ("sport", "news"), ("art", "news"), ("law", "news")):
        _make(tmp_path, name, parent)
    places.remove(tmp_path, "law")
    with pytest.raises(FailedPrecondition, match="'news' is the parent of art, sport"):
        places.remove(tmp_path, "news")
    with pytest.raises(NotFound, match=r"no domain 'law' at .*; there are: art, news, sport"):
        places.remove(tmp_path, "law")
    for name in ("general", ".news.work"):
        with pytest.raises((NotFound, InvalidName)):
            places.remove(tmp_path, name)
    with pytest.raises(InvalidName):
        places.remove(tmp_path / "news", "../art")
    with pytest.raises(FailedPrecondition, match="no folder of domains"):
        places.remove(tmp_path / "none", "news")
    assert [name for name, _ in places.domains_in(tmp_path)] == ["art", "news", "sport"]


def test_a_folder_that_is_no_domain_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / f".notes{places.REMOVED_SUFFIX}").mkdir()
    places.remove(tmp_path, "notes")
    assert [each.name for each in tmp_path.iterdir()] == ["notes"]
    with pytest.raises(NotFound, match="there are: none"):
        places.remove(tmp_path, "notes")


def test_a_damaged_domain_can_go_and_protects_what_may_be_its_parent(tmp_path: Path) -> None:
    _make(tmp_path, "news")
    (_make(tmp_path, "sport", "news") / places.TABLE / MANIFEST_FILE).write_text("{")
    with pytest.raises(DataCorrupted):
        places.remove(tmp_path, "news")
    places.remove(tmp_path, "sport")
    places.remove(tmp_path, "news")
    assert list(tmp_path.iterdir()) == []


def test_of_a_link_the_link_goes(tmp_path: Path) -> None:
    own = _make(tmp_path / "elsewhere", "news")
    folder = tmp_path / "domains"
    folder.mkdir()
    (folder / "news").symlink_to(own)
    places.remove(folder, "news")
    assert list(folder.iterdir()) == [] and Table.open(own / places.TABLE, verify=True)


def test_what_the_file_system_refuses_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, "news")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rename", refuse)
    with pytest.raises(FailedPrecondition, match=r"news cannot be removed: .*Permission denied"):
        places.remove(tmp_path, "news")
    assert Table.open(tmp_path / "news" / places.TABLE, verify=True)


class Killed(BaseException):
    """The process ends here."""


def _kill_at(patch: pytest.MonkeyPatch, call: int) -> None:
    """From the `call`th change of the file system on nothing is done any more."""
    left = count(call, -1)

    def until(function: Callable[..., object]) -> Callable[..., object]:
        def called(*arguments: object, **options: object) -> object:
            if next(left) <= 0:
                raise Killed
            return function(*arguments, **options)

        return called

    for name in ("rename", "unlink", "rmdir", "fsync"):
        patch.setattr(os, name, until(getattr(os, name)))


def test_killed_at_any_moment_it_is_whole_or_gone_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = 0
    for call in count():
        folder = tmp_path / str(call)
        place = _make(folder, "news")
        with monkeypatch.context() as patch:
            _kill_at(patch, call)
            try:
                places.remove(folder, "news")
            except Killed:
                ended = False
            else:
                ended = True
        if there := dict(places.domains_in(folder)):
            assert there == {"news": place} and Table.open(place / places.TABLE, verify=True)
            assert (place / places.ENCODER).is_file() and (place / places.CURVE).is_file()
            whole += 1
        elif call % 2:
            _make(folder, "news")  # the name is free at once
        if ended:
            break
        places.remove(folder, "news")
        assert list(folder.iterdir()) == []
    assert whole == 1 and call > 7, "renamed at first, then all files and folders one by one"
