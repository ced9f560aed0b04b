"""The Python that has AdapterHub's library, where there is one."""

from __future__ import annotations

from pathlib import Path

VENVS = Path.home() / ".cache" / "smile" / "benchmarks"
WHY_NOT = (
    "AdapterHub's library is not installed: it needs transformers 4, so it has an environment of "
    "its own, which benchmarks.peers makes; its recorded answers are tested all the same"
)


def found() -> Path | None:
    """The newest environment that benchmarks made for it."""
    pythons = sorted(VENVS.glob("adapters-*/bin/python"), key=lambda path: path.stat().st_mtime)
    return pythons[-1] if pythons else None
