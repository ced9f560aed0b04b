"""A model's tokenizer files: compared with its backbone's, and copied beside an export."""

from __future__ import annotations

import shutil
from pathlib import Path

from smile.errors import FailedPrecondition
from smile.model.checkpoint import TOKENIZER_SETTINGS_FILE, tokenizer_file
from smile.model.port.files import read_json
from smile.model.port.values import unsupported

COPIED = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", TOKENIZER_SETTINGS_FILE),
    *("special_tokens_map.json", "added_tokens.json"),
)


def compared(folder: Path, base: Path) -> list[str]:
    """Remarks on a folder's tokenizer, which must cut texts as the backbone's does.

    Raises:
        InvalidArgument: its vocabulary or its normalisation is another.
    """
    try:
        mine = tokenizer_file(folder)
    except FailedPrecondition:
        return ["the folder has no tokenizer: the backbone's is used"]
    frozen = tokenizer_file(base)
    if (word := _odd(_vocabulary(mine), _vocabulary(frozen))) is not None:
        raise unsupported(
            f"{mine} numbers {word!r} otherwise than the backbone's tokenizer; nothing was imported"
        )
    if mine.suffix == frozen.suffix == ".json":
        stated, wanted = (read_json(file).get("normalizer") for file in (mine, frozen))
        if stated != wanted:
            raise unsupported(
                f"{mine}: normalizer is {stated}, the backbone's is {wanted}; nothing was imported"
            )
    return []


def _vocabulary(file: Path) -> dict[str, int]:
    """Numbers of all words."""
    if file.suffix == ".txt":
        return {word: i for i, word in enumerate(file.read_text(encoding="utf-8").splitlines())}
    model = read_json(file).get("model")
    found = model.get("vocab") if isinstance(model, dict) else None
    return found if isinstance(found, dict) else {}


def _odd(mine: dict[str, int], frozen: dict[str, int]) -> str | None:
    """A word that is not numbered alike in both."""
    return next((w for w in (mine.keys() | frozen.keys()) if mine.get(w) != frozen.get(w)), None)


def copy(base: Path, folder: Path) -> None:
    """The backbone's tokenizer, beside an export."""
    for name in COPIED:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
