"""Makes unpickling raise, in this process and in every Python that it starts.

Pickles run code, so nothing of ours may read one; the whole test suite runs under this guard
(`tests/conftest.py`), and so do the services that it starts: `sitecustomize.py` beside this file
is the first that they import. Guarded are the doors that exist: `pickle.load`, `loads` and
`Unpickler`, in Python and in C, `shelve` and `marshal` files by way of them, numpy's object arrays,
which come to `pickle.load`, and `torch.load`, which has an unpickler of its own.

`marshal` itself reads what Python compiled and cannot be guarded; the law in `ruff` and
`tests/unit/test_no_unpickling.py` keeps it out of our sources.
"""

from __future__ import annotations

import _pickle
import importlib.abc
import importlib.machinery
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = str(Path(__file__).resolve().parent)

# Who else's code may, and why. Names are of modules, with all below them.
EXCEPTIONS = {
    "multiprocessing": "hands objects from a process of the tests to its own children, by pipes",
    "concurrent.futures.process": "does so through multiprocessing",
}


class UnpicklingForbidden(BaseException):
    """Something was about to be unpickled. No `except Exception` may hide it."""


def _may(depth: int) -> bool:
    """Whether the caller `depth` frames up is one of the exceptions."""
    name = str(sys._getframe(depth + 1).f_globals.get("__name__", ""))
    return any(name == each or name.startswith(f"{each}.") for each in EXCEPTIONS)


def _guarded(real: Callable[..., Any], name: str) -> Callable[..., Any]:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        if _may(1):
            return real(*args, **kwargs)
        caller = sys._getframe(1).f_globals.get("__name__", "?")
        raise UnpicklingForbidden(f"{caller} called {name}")

    refuse.guarded = True  # type: ignore[attr-defined]
    return refuse


def _shut(real: type) -> type:
    """A class that others can derive theirs from, and of which there are no instances."""

    def refuse(self: object, *args: Any, **kwargs: Any) -> None:
        raise UnpicklingForbidden(f"{type(self).__module__} made an Unpickler")

    return type(real.__name__, (real,), {"__init__": refuse, "load": refuse})


class _TorchLoad(importlib.abc.MetaPathFinder):
    """Guards `torch.load` as soon as torch is imported."""

    NAME = "torch.serialization"

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != self.NAME:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def run(module: ModuleType) -> None:
            execute(module)
            _guard_torch(module)

        spec.loader.exec_module = run  # type: ignore[method-assign]
        return spec


def _guard_torch(module: ModuleType) -> None:
    if not hasattr(module.load, "guarded"):
        module.load = _guarded(module.load, "torch.load")  # type: ignore[attr-defined]


def install() -> None:
    """Guard this process, and those that it starts. Twice is fine."""
    if hasattr(pickle.load, "guarded"):
        return
    for module in (pickle, _pickle):
        for name in ("load", "loads"):
            setattr(module, name, _guarded(getattr(module, name), f"pickle.{name}"))
        for name in ("Unpickler", "_Unpickler"):
            if hasattr(module, name):
                setattr(module, name, _shut(getattr(module, name)))
    if (torch := sys.modules.get("torch.serialization")) is not None:
        _guard_torch(torch)
        sys.modules["torch"].load = torch.load  # type: ignore[attr-defined]
    sys.meta_path.insert(0, _TorchLoad())
    os.environ["PYTHONPATH"] = _with_us(os.environ.get("PYTHONPATH"))
    _guard_children()


def _with_us(path: str | None) -> str:
    others = [part for part in (path or "").split(os.pathsep) if part and part != FOLDER]
    return os.pathsep.join([FOLDER, *others])


def _guard_children() -> None:
    """Children whose environment a test made from nothing are guarded, too."""
    start = subprocess.Popen.__init__

    def guarded(self: Any, *args: Any, **kwargs: Any) -> None:
        if (environment := kwargs.get("env")) is not None:
            path = _with_us(environment.get("PYTHONPATH"))
            kwargs["env"] = {**environment, "PYTHONPATH": path}
        start(self, *args, **kwargs)

    subprocess.Popen.__init__ = guarded  # type: ignore[method-assign]
