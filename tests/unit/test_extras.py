"""Each service starts with what its extra installs, and nothing else: an image has no more."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import deque
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = "smile-platform"
ENTRIES = {
    "": ("smile", "smile.cli"),
    "storage": ("services.storage.__main__",),
    "creator": ("services.creator.__main__",),
    "processor": ("services.processor.__main__",),
    "trainer": ("services.trainer.__main__", "services.trainer.worker.__main__"),
    "embedded": ("smile.embedded", "smile.model.skip.distill", "smile.representations.build"),
}
ALONE = """
import importlib, json, sys
blocked, entries = map(set, json.loads(sys.argv[1]))
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
for entry in entries:
    importlib.import_module(entry)
"""


@cache
def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def installed_with(extra: str) -> set[str]:
    """Distributions that pip installs for `smile-platform[extra]`, by canonical name."""
    found: set[str] = set()
    asked = deque([Requirement(f"{PROJECT}[{extra}]" if extra else PROJECT)])
    seen: set[tuple[str, frozenset[str]]] = set()
    while asked:
        wanted = asked.popleft()
        name, extras = canonicalize_name(wanted.name), frozenset(wanted.extras)
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name != PROJECT:
            found.add(name)
        asked += [each for each in _required_by(name) if _applies(each, extras)]
        if name == PROJECT:
            more = project()["optional-dependencies"]
            asked += [Requirement(each) for one in extras for each in more[one]]
    return found


def _required_by(name: str) -> list[Requirement]:
    if name == PROJECT:
        return [Requirement(each) for each in project()["dependencies"]]
    try:
        return [Requirement(each) for each in distribution(name).requires or ()]
    except PackageNotFoundError:  # for another system than this
        return []


def _applies(wanted: Requirement, extras: frozenset[str]) -> bool:
    marker = wanted.marker
    return marker is None or any(marker.evaluate({"extra": one}) for one in (*extras, ""))


@pytest.mark.parametrize("extra", ENTRIES)
def test_what_an_extra_installs_is_enough_to_start(extra: str) -> None:
    there = installed_with(extra)
    blocked = [
        package
        for package, owners in packages_distributions().items()
        if package not in ("smile", "services", "buf")
        and there.isdisjoint(map(canonicalize_name, owners))
    ]
    assert {"pytest", "transformers"} <= set(blocked), "what is installed besides is out of reach"
    told = json.dumps([blocked, ENTRIES[extra]])
    done = subprocess.run(
        [sys.executable, "-c", ALONE, told], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2_000:]
