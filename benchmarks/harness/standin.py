"""The local encoder that the processor's settings name, or the included one, and its tables."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.harness import workload
from benchmarks.harness.engine import settings
from benchmarks.harness.fleet import BACKBONE
from demo.news import Document, load_news
from services.processor.materialize.options import INCLUDED
from smile.errors import FailedPrecondition
from smile.limits import GIB
from smile.model.backbone import Backbone
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.skip.included import included_for
from smile.model.skip.rows import EncoderRows
from smile.representations import build
from smile.representations.build import TableWish

EVERYTHING = 64 * GIB


def encoder_place() -> Path:
    """The file that `SMILE_PROCESSOR_SKIP` names for this backbone; where it names none, the one
    that comes with SMILE.

    Raises:
        FailedPrecondition: none does.
    """
    place = settings().stand_ins.get(BACKBONE)
    if place is not None and place.encoder != INCLUDED:
        return place.encoder
    if (found := included_for(backbone().digest)) is None:
        raise FailedPrecondition(
            f"materialised answers need a local encoder: set SMILE_PROCESSOR_SKIP={BACKBONE}=/file",
            reason="NOT_MATERIALIZED",
        )
    return found[0]


@cache
def backbone() -> Backbone:
    """The one that is measured."""
    source = next(source for source in settings().sources if source.name == BACKBONE)
    return Backbone.load(source.locate(), BACKBONE)


@dataclass(frozen=True, slots=True)
class Halves:
    """Different sentences of the training documents, and of those held out."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    @classmethod
    def load(cls) -> Halves:
        news = load_news()
        return cls(_sentences(news.train), _sentences(news.held_out))


@dataclass(frozen=True, slots=True)
class Tables:
    """Snapshots, made in a folder."""

    folder: Path
    encoder: EncoderRows

    @classmethod
    def at(cls, folder: Path) -> Tables:
        """Raises what `encoder_place` raises."""
        return cls(folder, EncoderRows.load(encoder_place(), backbone()))

    def ids(self, texts: Sequence[str], /) -> list[list[int]]:
        """Token ids of each text."""
        return [text.ids for text in backbone().tokenizer.encode(texts, truncate=True)]

    def make(
        self,
        name: str,
        texts: Sequence[str],
        dtype: RowDtype = RowDtype.FLOAT16,
        budget_bytes: int = EVERYTHING,
    ) -> Path:
        """A table of the texts' most frequent n-grams."""
        row_format = RowFormat(dtype, self.encoder.origin.width)
        wish = TableWish(row_format, budget_bytes, self.encoder.vocab)
        place = self.folder / name
        build.build(place, texts, self.ids, self.encoder, self.encoder.outside, wish)
        return place


@contextmanager
def stood_in() -> Iterator[Mapping[str, str]]:
    """Settings of a processor with the local encoder and a table of the training sentences, which
    is gone afterwards. Raises what `encoder_place` raises.
    """
    with tempfile.TemporaryDirectory(prefix="smile-bench-tables-") as made:
        place = Tables.at(Path(made)).make("train", Halves.load().train)
        yield {
            "SMILE_PROCESSOR_SKIP": f"{BACKBONE}={encoder_place()}",
            "SMILE_PROCESSOR_TABLES": f"{BACKBONE}={place}",
        }


def _sentences(documents: Sequence[Document]) -> tuple[str, ...]:
    found = itertools.chain.from_iterable(workload.sentences_of(one.text) for one in documents)
    return tuple(dict.fromkeys(found))
