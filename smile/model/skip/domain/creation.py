"""From a corpus to a domain: learn, count, keep the rows that matter.

A domain appears in its folder complete or not at all: it is made beside its place and renamed.
Killed at any moment, the same creation goes on where it was.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from smile.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from smile.limits import GIB
from smile.model.backbone import Backbone
from smile.model.ngram_rows import RowDtype, RowFormat
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFile
from smile.model.skip.distill.child import alone
from smile.model.skip.distill.corpus import cut
from smile.model.skip.distill.documents import Document, served_texts
from smile.model.skip.distill.run import Distillation, Distilled, Event, Job
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.domain.mixing import Mix
from smile.model.skip.form import outside_of
from smile.model.skip.policy import MissPolicy
from smile.model.skip.rows import EncoderRows
from smile.names import check_id
from smile.representations import places
from smile.representations.build import OnProgress, TableWish, count_texts, ignore_progress
from smile.representations.counting import CorpusCounter, NgramCounts
from smile.representations.delta import DeltaRules, Encoders, build_delta, check_wish
from smile.representations.domains import EffectiveRows, usable
from smile.representations.manifest import GENERAL, TableManifest
from smile.representations.snapshot import Table

WORK_SUFFIX = ".work"
DONE = "done"
BUDGET_BYTES = 2 * GIB


def ignore_event(event: Event) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Kin:
    """What a domain is made over.

    Attributes:
        file: The local encoder that its own begins as: its parent's.
        rows: What its parent's texts get.
    """

    file: EncoderFile
    rows: EffectiveRows

    @classmethod
    def of(cls, folder: Path, parent: str, general: EncoderFile, backbone: Backbone) -> Kin:
        """The parent among a folder's domains, or `general`.

        Raises:
            NotFound: there is no such domain.
            FailedPrecondition: the local encoder is for another backbone, or computes no missing
                rows; or the parent cannot be used: the message says why.
            DataCorrupted: a file is not what was written.
        """
        computed = EncoderRows.of(general, backbone)
        if computed.policy is not MissPolicy.COMPUTE:
            raise FailedPrecondition(
                f"domains need a local encoder that computes missing rows, this one's policy is "
                f"'{computed.policy}'"
            )
        if parent == GENERAL:
            return cls(general, EffectiveRows(computed))
        found = dict(places.domains_in(folder)) if folder.is_dir() else {}
        if parent not in found:
            raise NotFound(f"parent must be one of {', '.join((GENERAL, *found))}, got '{parent}'")
        way = list(_upwards(found, parent))
        tree, faults = usable(computed.origin, way)
        for error in faults.values():
            raise error
        file = artifact.read(found[parent] / places.ENCODER)
        assert tree.path(parent)[-1] == GENERAL
        if file.digest != way[0].manifest.origin.encoder_digest:
            raise FailedPrecondition(
                f"the local encoder beside domain '{parent}' is not the one of its rows",
                reason="ENCODER_MISMATCH",
            )
        return cls(file, EffectiveRows(computed, tuple(way)))


def _upwards(found: dict[str, Path], name: str) -> Sequence[Table]:
    way: list[Table] = []
    while name != GENERAL:
        if name not in found or len(way) > len(found):
            raise FailedPrecondition(
                f"domain '{way[-1].manifest.domain}' needs its parent '{name}', which has no table",
                reason="DOMAIN_NOT_SERVED",
            )
        way.append(Table.open(found[name] / places.TABLE, verify=True))
        name = way[-1].manifest.parent
    return way


@dataclass(frozen=True, slots=True)
class DomainWish:
    """What domain is wanted.

    Attributes:
        folder: Where domains lie.
        alphas: Shares to learn for; None: that of `rules` alone.

    Raises:
        InvalidName: a name is no resource id, or `general`.
    """

    name: str
    parent: str
    folder: Path
    rules: DeltaRules = field(default_factory=DeltaRules)
    budget_bytes: int = BUDGET_BYTES
    dtype: RowDtype = RowDtype.FLOAT16
    alphas: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_id(self.name, "domain")
        check_id(self.parent, "parent")
        if self.name == GENERAL:
            raise InvalidArgument(f"a domain must have a name of its own, got '{GENERAL}'")

    @property
    def place(self) -> Path:
        return self.folder / self.name

    @property
    def work(self) -> Path:
        """Where it is made."""
        return self.folder / f".{self.name}{WORK_SUFFIX}"


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of a domain: to learn from and count, and to measure on."""

    name: str
    learned: Sequence[Document]
    held_out: Sequence[Document]


def domain_settings(file: EncoderFile, **changes: float) -> DistillSettings:
    """How a domain's encoder learns: of its parent's form. Raises `InvalidArgument`."""
    form = file.facts.form
    widths = {
        "boundary": form.boundary,
        "first": form.first,
        "middle": form.middle,
        "after": form.after,
        "context": form.context,
    }
    learning = {"epochs": 4, "near_share": 0.75, "rate": 1e-3}
    return DistillSettings(**{**widths, **learning, **changes})  # type: ignore[arg-type]


class Creation:
    """One domain as it is made.

    Args:
        settings: See `domain_settings`.
    """

    def __init__(
        self,
        wish: DomainWish,
        kin: Kin,
        corpus: Corpus,
        backbone: Backbone,
        settings: DistillSettings,
    ) -> None:
        self._wish = wish
        self._kin = kin
        self._corpus = corpus
        self._backbone = backbone
        self._settings = settings

    def run(
        self,
        on_event: Callable[[Event], None] = ignore_event,
        on_progress: OnProgress = ignore_progress,
    ) -> TableManifest:
        """Makes it, or goes on where it was.

        Raises:
            AlreadyExists: there is something in its place.
            InvalidArgument: the corpus has no sentence, or no row would differ from the parent's.
            FailedPrecondition: another process makes it, or what was begun is another domain; the
                disk is full; learning diverged.
        """
        wish = self._wish
        if wish.place.exists():
            raise AlreadyExists(f"{wish.place} is there already: remove it, or choose another name")
        check_wish(self._table)
        wish.work.mkdir(parents=True, exist_ok=True)
        with alone(wish.work):
            counted = self._counted(on_progress)
            learned = self._learned(counted[1], on_event)
            made = self._write(learned, counted, on_progress)
            shutil.rmtree(wish.work)
        return made

    def _counted(self, on_progress: OnProgress) -> tuple[CorpusCounter, NgramCounts]:
        tokenizer, outside = self._backbone.tokenizer, self._outside

        def ids(texts: Sequence[str]) -> list[list[int]]:
            return [text.ids for text in tokenizer.encode(texts, truncate=True)]

        return count_texts(served_texts(self._corpus.learned), ids, outside, on_progress)

    @property
    def _outside(self) -> int:
        return outside_of(self._backbone.embeddings.position_offset)

    @property
    def _table(self) -> TableWish:
        wish, backbone = self._wish, self._backbone
        return TableWish(
            RowFormat(wish.dtype, backbone.shape.hidden),
            wish.budget_bytes,
            backbone.info.vocab,
            domain=wish.name,
            parent=wish.parent,
        )

    def _learned(self, counts: NgramCounts, on_event: Callable[[Event], None]) -> Distilled:
        wish, backbone, settings = self._wish, self._backbone, self._settings
        most = min(settings.passage_tokens, backbone.shape.tokens_max)
        corpus = self._corpus
        job = Job(
            backbone,
            settings,
            cut(corpus.learned, backbone.tokenizer, most),
            cut(corpus.held_out, backbone.tokenizer, most),
            corpus.name,
            wish.work,
            self._kin.file,
            Mix.of(
                self._kin.rows,
                counts,
                wish.alphas or (wish.rules.alpha,),
                wish.rules.difference_min,
            ),
        )
        running = Distillation(job)
        for event in running.events():
            on_event(event)
        return running.result()

    def _write(
        self,
        learned: Distilled,
        counted: tuple[CorpusCounter, NgramCounts],
        on_progress: OnProgress,
    ) -> TableManifest:
        wish, done = self._wish, self._wish.work / DONE
        shutil.rmtree(done, ignore_errors=True)
        done.mkdir()
        encoders = Encoders(EncoderRows.of(learned.file, self._backbone), self._kin.rows)
        place = done / places.TABLE
        made = build_delta(place, counted, encoders, self._table, wish.rules, on_progress)
        curve = json.dumps([asdict(point) for point in learned.curve])
        (done / places.CURVE).write_text(f"{curve}\n", encoding="utf-8")
        with (done / places.ENCODER).open("wb") as file:
            file.write(learned.data)
            file.flush()
            os.fsync(file.fileno())
        try:
            done.rename(wish.place)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise AlreadyExists(f"{wish.place} was made meanwhile") from error
            raise
        return made
