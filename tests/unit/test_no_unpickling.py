"""The guard against unpickling bites: here, in children, and in whatever comes to pickle."""

from __future__ import annotations

import _pickle
import asyncio
import io
import multiprocessing
import os
import pickle
import shelve
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.guard.no_unpickling import EXCEPTIONS, UnpicklingForbidden

ROOT = Path(__file__).resolve().parents[2]
DATA = pickle.dumps({"harmless": 1})


class Bomb:
    """Writes a file if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.path,)


DOORS: dict[str, Callable[[bytes], object]] = {
    "pickle.loads": pickle.loads,
    "pickle.load": lambda data: pickle.load(io.BytesIO(data)),
    "pickle.Unpickler": lambda data: pickle.Unpickler(io.BytesIO(data)).load(),
    "pickle._Unpickler": lambda data: pickle._Unpickler(io.BytesIO(data)).load(),
    "_pickle.loads": _pickle.loads,
    "_pickle.load": lambda data: _pickle.load(io.BytesIO(data)),
    "_pickle.Unpickler": lambda data: _pickle.Unpickler(io.BytesIO(data)).load(),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_is_shut(door: str, tmp_path: Path) -> None:
    for data in (DATA, pickle.dumps(Bomb(tmp_path / "gone-off"))):
        with pytest.raises(UnpicklingForbidden):
            DOORS[door](data)
    assert list(tmp_path.iterdir()) == []


def test_subclasses_can_be_made_and_not_used() -> None:
    class Careful(pickle.Unpickler):
        pass

    with pytest.raises(UnpicklingForbidden):
        Careful(io.BytesIO(DATA))


def test_numpy_comes_to_the_same_door(tmp_path: Path) -> None:
    path = tmp_path / "objects.npy"
    np.save(path, np.array([Bomb(tmp_path / "gone-off")], dtype=object), allow_pickle=True)
    with pytest.raises(UnpicklingForbidden):
        np.load(path, allow_pickle=True)
    assert not (tmp_path / "gone-off").exists()
    np.save(tmp_path / "numbers.npy", np.arange(3))
    assert np.load(tmp_path / "numbers.npy").tolist() == [0, 1, 2]


def test_shelves_come_to_the_same_door(tmp_path: Path) -> None:
    with shelve.open(str(tmp_path / "shelf")) as kept:
        kept["key"] = 1
        with pytest.raises(UnpicklingForbidden):
            _ = kept["key"]


@pytest.mark.parametrize("weights_only", [True, False])
def test_torch_has_one_of_its_own(tmp_path: Path, weights_only: bool) -> None:
    import torch

    torch.save({"weight": torch.zeros(2)}, tmp_path / "model.bin")
    with pytest.raises(UnpicklingForbidden, match=r"torch\.load"):
        torch.load(tmp_path / "model.bin", weights_only=weights_only)


def test_nothing_that_catches_errors_hides_it() -> None:
    assert not issubclass(UnpicklingForbidden, Exception)


CHILD = "import pickle; pickle.loads(pickle.dumps(1))"
TORCH_CHILD = (
    "import io, torch; file = io.BytesIO(); torch.save([], file); file.seek(0); torch.load(file)"
)


@pytest.mark.parametrize("environment", [None, {}, {"PATH": os.environ["PATH"]}])
@pytest.mark.parametrize("options", [[], ["-P"]])
def test_children_are_guarded_whatever_their_environment(
    environment: dict[str, str] | None, options: list[str]
) -> None:
    command = [sys.executable, *options, "-c", CHILD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "UnpicklingForbidden: __main__ called pickle.loads" in done.stderr


@pytest.mark.asyncio
async def test_children_of_asyncio_and_torch_in_them_are_guarded() -> None:
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", TORCH_CHILD, env={"PATH": "/bin"}, stderr=asyncio.subprocess.PIPE
    )
    _, stderr = await child.communicate()
    assert b"UnpicklingForbidden: __main__ called torch.load" in stderr


def test_the_exceptions_are_others_and_are_few() -> None:
    """What multiprocessing hands to its children works; no exception is a module of ours."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(abs, (-3,)) == 3
    assert len(EXCEPTIONS) <= 5
    assert not [name for name in EXCEPTIONS if name.split(".")[0] in ("smile", "services", "tests")]


def test_no_source_of_ours_names_an_unpickler() -> None:
    words = (
        *("import pickle", "import marshal", "import shelve", "import dill", "import joblib"),
        *("cloudpickle", "torch.load(", "allow_pickle=True"),
    )
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for folder in ("smile", "services", "demo", "deploy", "tools")
        for path in (ROOT / folder).rglob("*.py")
        for word in words
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []
