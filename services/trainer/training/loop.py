"""Gradient steps: data and spec in, weights out. No I/O, no clock, no queue.

The PET module and the head are trained, or the whole model. Everything in front of the first PET op
is computed once per text (`states.py`), and back-propagation never enters it. Whoever consumes a
training's events may stop between any two, by dropping it; a snapshot taken then goes on elsewhere.
The same data, spec and seed give the same bytes on one machine, however often the run was broken
off.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import ExitStack

import torch

from services.trainer.data.corpus import Corpus, CorpusRow, split_rows
from services.trainer.data.examples import Example, LabeledText
from services.trainer.training.learner import Learner, NoStates, learner
from services.trainer.training.loop_events import Encoding, LoopEvent
from services.trainer.training.objectives import Data
from services.trainer.training.run import Rows, Run, Trained, TrainingInput
from services.trainer.training.snapshots import Snapshot
from services.trainer.training.states import EntryStates, States, TwoStates
from smile.model.full import FullModule
from smile.model.initial import initial_tensors
from smile.resources import TrainingStates


class Training:
    """One training. `events` runs it; in between, `snapshot` tells where it is."""

    def __init__(self, given: TrainingInput) -> None:
        self._given = given
        self._run: Run | None = None

    def events(self) -> Generator[LoopEvent, None, Trained]:
        """Trains, and yields what happens.

        Raises:
            LossNotFinite: with the step, the rate and what to try.
            FailedPrecondition: the module is of another backbone.
            DataCorrupted: the tensors do not fit the spec.
            DiskFull: the texts' states do not fit where they are to be kept.
        """
        with ExitStack() as stack:
            self._run = yield from _prepare(self._given, stack)
            yield self._run.plan()
            yield from self._run.epochs()
            return self._run.result()

    def snapshot(self) -> Snapshot | None:
        """Where the training is, between two events; None before its first step."""
        return None if self._run is None else self._run.snapshot()


def train(given: TrainingInput) -> Generator[LoopEvent, None, Trained]:
    """`Training.events` of one that nobody takes snapshots of."""
    return Training(given).events()


def _prepare(given: TrainingInput, stack: ExitStack) -> Generator[LoopEvent, None, Run]:
    torch.manual_seed(given.values.seed)
    shape = given.backbone.shape
    tensors = given.tensors
    if tensors is None:
        tensors = initial_tensors(given.spec, shape, given.values.seed)
    module = learner(given.backbone, given.spec, tensors)
    limit = min(given.values.tokens_max or shape.tokens_max, shape.tokens_max)
    corpus = Corpus(given.backbone.tokenizer, limit)
    training = yield from _tokenized(corpus, given.examples)
    rows = Rows(training, ())
    if given.validation is not None:
        validation = yield from _tokenized(corpus, given.validation)
        rows = Rows(training, tuple(validation))
    elif given.values.validation_ratio > 0:
        rows = _drawn(given, training)
    states = _states(given, module, corpus)
    stack.callback(states.close)
    for done in states.fill():
        yield Encoding(done, len(corpus.texts), states.bytes_kept)
    return Run(given, module, Data(corpus, states), rows)


def _states(given: TrainingInput, module: Learner, corpus: Corpus) -> States:
    """Of the kind trained on, and where there is another, of that."""
    kind, texts, precision = given.values.states, corpus.texts, given.precision
    assert given.lower is not None or kind is TrainingStates.EXACT, "checked before"
    if isinstance(module, FullModule):
        return NoStates(texts, precision)
    if given.lower is None:
        return EntryStates(module, texts, given.room, precision)
    both = kind is TrainingStates.MIXED
    room = given.room.half if both else given.room
    exact = EntryStates(module, texts, room, precision)
    made = EntryStates(module, texts, room, precision, given.lower)
    first, second = (made, exact) if kind is TrainingStates.MATERIALIZED else (exact, made)
    return TwoStates(first, second, both)


def _tokenized(
    corpus: Corpus, examples: Sequence[Example]
) -> Generator[LoopEvent, None, list[CorpusRow]]:
    rows: list[CorpusRow] = []
    for some in corpus.tokenize(examples):
        rows += some
        yield Encoding(0, len(corpus.texts))
    return rows


def _drawn(given: TrainingInput, rows: Sequence[CorpusRow]) -> Rows:
    classes = [e.label if isinstance(e, LabeledText) else 0 for e in given.examples]
    split = split_rows(classes, given.values.validation_ratio, given.values.seed)
    return Rows([rows[row] for row in split.training], tuple(rows[r] for r in split.validation))
