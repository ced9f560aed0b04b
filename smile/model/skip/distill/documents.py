"""Documents of a corpus on disk, and the pieces of them that are learned from.

A corpus is files and folders of them: `.txt`, which is one document or one a line, and `.jsonl` and
`.csv` with a document a row in column `text`, and where there are classes in column `label`.
"""

from __future__ import annotations

import csv
import enum
import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from smile.errors import DatasetInvalid, InvalidArgument
from smile.limits import TEXT_CHARS_MAX

TEXT, LABEL = "text", "label"
SENTENCE_WORDS_MIN = 3
# Behind a full stop, before a capital or a number. Abbreviations cost a cut too many: both halves
# are text as good as any.
_SENTENCE_ENDS = re.compile(r"(?<=[.!?])[\"'\u201d\u2019)]*\s+(?=[\"'\u201c\u2018(]*[A-Z0-9])")


class TextFiles(enum.StrEnum):
    """How a `.txt` file is read."""

    LINES = "lines"
    WHOLE = "whole"


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a corpus; `label` is empty where it has none."""

    text: str
    label: str = ""

    def sentences(self) -> list[str]:
        """Its sentences, those of few words left out. A line break ends a sentence, too."""
        parts = [
            part.strip() for line in self.text.splitlines() for part in _SENTENCE_ENDS.split(line)
        ]
        return [part for part in parts if len(part.split()) >= SENTENCE_WORDS_MIN]


def read_documents(
    paths: Sequence[Path], text_files: TextFiles = TextFiles.LINES
) -> list[Document]:
    """The documents under the paths, those of white space alone left out, long ones cut; in the
    order of their files' names inside each path.

    Raises:
        InvalidArgument: a path is not there or of a kind that is not read, or nothing is in them.
        DatasetInvalid: a file is not UTF-8 or has no such column; the message says which and where.
    """
    found = [
        Document(document.text[:TEXT_CHARS_MAX], document.label)
        for path in paths
        for file in _files_of(path)
        for document in _read(file, text_files)
        if document.text and not document.text.isspace()
    ]
    if not found:
        raise InvalidArgument(
            f"a corpus must have at least 1 document, got 0 in {', '.join(map(str, paths))}"
        )
    return found


def served_texts(documents: Sequence[Document]) -> Iterator[str]:
    """As serving meets them: whole, and by sentences, which begin and end otherwise."""
    for document in documents:
        yield document.text
        sentences = document.sentences()
        if len(sentences) > 1:
            yield from sentences


def split_documents(
    documents: Sequence[Document], share: float, seed: int
) -> tuple[list[Document], list[Document]]:
    """(learned from, held out): at least one each; drawn by the seed. Equal texts stay together.

    Raises:
        InvalidArgument: there are fewer than two different documents.
    """
    texts = sorted({document.text for document in documents})
    if len(texts) < 2:
        raise InvalidArgument(f"a corpus must have at least 2 documents, got {len(texts)}")
    random.Random(seed).shuffle(texts)  # noqa: S311 -- a split, not a secret
    held = set(texts[: min(len(texts) - 1, max(1, round(share * len(texts))))])
    return (
        [document for document in documents if document.text not in held],
        [document for document in documents if document.text in held],
    )


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.is_file() and p.suffix in _READERS)
    if not path.is_file():
        raise InvalidArgument(f"corpus: there is no file or folder {path}")
    if path.suffix not in _READERS:
        raise InvalidArgument(f"corpus: files must be {', '.join(_READERS)}, got {path}")
    return [path]


def _read(path: Path, text_files: TextFiles) -> Iterator[Document]:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DatasetInvalid(f"{path} must be UTF-8, byte {error.start} is not") from error
    if path.suffix == ".txt" and text_files is TextFiles.WHOLE:
        return iter([Document(text.strip())])
    return _READERS[path.suffix](path, text.splitlines())


def _lines(path: Path, lines: Sequence[str]) -> Iterator[Document]:
    for line in lines:
        yield Document(line.strip())


def _csv(path: Path, lines: Sequence[str]) -> Iterator[Document]:
    rows = csv.DictReader(f"{line}\n" for line in lines)
    try:
        for row in rows:
            yield _of_row(row, f"{path}, line {rows.line_num}")
    except csv.Error as error:
        raise DatasetInvalid(f"{path}, line {rows.line_num}: {error}") from error


def _json_lines(path: Path, lines: Sequence[str]) -> Iterator[Document]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DatasetInvalid(f"{path}, line {number} is not JSON: {error}") from error
            yield _of_row(row if isinstance(row, dict) else {}, f"{path}, line {number}")


def _of_row(row: Mapping[str, object], where: str) -> Document:
    text, label = row.get(TEXT), row.get(LABEL) or ""
    if not isinstance(text, str):
        raise DatasetInvalid(f"{where} must have a text in column '{TEXT}'")
    return Document(text.strip(), str(label))


_READERS: Mapping[str, Callable[[Path, Sequence[str]], Iterator[Document]]] = {
    ".txt": _lines,
    ".csv": _csv,
    ".jsonl": _json_lines,
}
