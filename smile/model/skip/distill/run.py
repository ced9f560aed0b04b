"""One distillation from corpus to file: prepare, learn, measure.

`events` runs it and tells how far it is. It may be killed at any moment: started again with the
same arguments it goes on from the last checkpoint, to the same numbers; only the time that it says
it took is another.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from smile.errors import FailedPrecondition
from smile.model.backbone import Backbone
from smile.model.packing import PackedTokens, pack
from smile.model.skip import artifact
from smile.model.skip.artifact import EncoderFacts, EncoderFile
from smile.model.skip.distill import checkpoint
from smile.model.skip.distill.checkpoint import Place, Point
from smile.model.skip.distill.corpus import Pieces, batches
from smile.model.skip.distill.dropout import shortened
from smile.model.skip.distill.measures import measure
from smile.model.skip.distill.objective import Errors, Objective
from smile.model.skip.distill.settings import DistillSettings
from smile.model.skip.distill.teacher import Targets, Teacher
from smile.model.skip.distill.upper import upper_layers
from smile.model.skip.domain.mixing import AsServed, Mix
from smile.model.skip.encoder import LocalEncoder
from smile.model.skip.ngrams import ngram_keys
from smile.model.skip.policy import MissPolicy
from smile.representations.fallback import served
from smile.representations.keys import keys_of_texts

DTYPE = torch.bfloat16  # of products; weights and sums are float32
WARMUP_STEPS_MAX = 60
WARMUP_SHARE = 0.05
RATE_LAST = 0.02  # of the peak
GRADIENT_NORM_MAX = 1.0
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
SMOOTHING = 0.95
CHECKPOINT_S = 30.0
POINTS_MAX = 400  # of the curve
SAMPLE_TOKENS = 24_000  # for the measure at the boundary


class Phase(enum.StrEnum):
    """What takes long."""

    TEACHER = "teacher"
    LEARNING = "learning"
    MEASURING = "measuring"


@dataclass(frozen=True, slots=True)
class Event:
    """How far a phase is: `done` of `total` tokens, steps or texts."""

    phase: Phase
    done: int
    total: int
    epoch: int = 0
    loss: float = 0.0
    states: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """What to distil.

    Attributes:
        corpus: Its name, for people.
        work: A folder for checkpoint and teacher's states.
        parent: The encoder to begin as; None begins with random numbers.
        mix: Of a domain, whose rows its texts get while it learns; merging stays the parent's then.
    """

    backbone: Backbone
    settings: DistillSettings
    learned: Pieces
    held_out: Pieces
    corpus: str
    work: Path
    parent: EncoderFile | None = None
    mix: Mix | None = None

    @property
    def parent_digest(self) -> str:
        """Of the encoder to begin as; empty without one."""
        return "" if self.parent is None else self.parent.digest

    @property
    def digest(self) -> str:
        """Of all that decides the result."""
        more = () if self.mix is None else (self.mix.digest,)
        inputs = (self.backbone.digest, self.learned.digest, self.parent_digest)
        return self.settings.digest(*inputs, *more)


@dataclass(frozen=True, slots=True)
class Distilled:
    """The result.

    Attributes:
        data: The encoder's file.
    """

    file: EncoderFile
    data: bytes
    curve: tuple[Point, ...]


@dataclass(slots=True)
class Smoothed:
    """Running means of errors."""

    loss: float = 0.0
    states: list[float] = field(default_factory=list)
    scores: float = 0.0

    def add(self, errors: Errors) -> None:
        loss = float(errors.loss.detach())
        if len(self.states) != len(errors.states):  # looks elsewhere from now on
            self.loss, self.states, self.scores = loss, list(errors.states), errors.scores
            return
        keep, take = SMOOTHING, 1 - SMOOTHING
        self.loss = keep * self.loss + take * loss
        self.scores = keep * self.scores + take * errors.scores
        self.states = [keep * a + take * b for a, b in zip(self.states, errors.states, strict=True)]

    def point(self, step: int, epoch: int) -> Point:
        return Point(step, epoch, self.loss, tuple(self.states), self.scores)


class Distillation:
    """One job as it runs.

    Raises:
        FailedPrecondition: the boundary is not among the backbone's layers, or the work folder is
            another job's.
    """

    def __init__(self, job: Job) -> None:
        job.settings.form(job.backbone.shape).check_backbone(job.backbone.info)
        torch.set_num_threads(job.settings.threads)
        torch.manual_seed(job.settings.seed)
        self._job = job
        self._settings = job.settings
        self._encoder = _begun(job)
        self._optimizer = _optimizer(self._encoder, job.settings.rate)
        self._teacher = Teacher.of(job.backbone, job.settings.boundary)
        self._targets = Targets(self._teacher, job.learned, job.work)
        self._place = Place(job.digest)
        self._smoothed = Smoothed()
        self._resume()

    def events(self) -> Iterator[Event]:
        """Runs it; see `result` when it ended.

        Raises:
            FailedPrecondition: the disk is full, or the error is no number any more.
        """
        tokens = self._job.learned.tokens
        yield from (Event(Phase.TEACHER, done, tokens) for done in self._targets.prepare())
        yield from self._learn()
        yield Event(Phase.MEASURING, 0, len(self._job.held_out.ids))

    def result(self) -> Distilled:
        """The encoder as it is stored, measured on what was held out."""
        facts = self._facts({})
        data = artifact.encode(facts, self._arrays())
        rounded = LocalEncoder.of(artifact.decode(data), self._job.backbone)
        measures = self._measures(rounded)
        data = artifact.encode(self._facts(measures), self._arrays())
        return Distilled(artifact.decode(data), data, self._place.curve)

    def _measures(self, encoder: LocalEncoder) -> dict[str, float]:
        """Of a domain: as it is served with most of its own rows, and with its parent's alone."""
        job, seed = self._job, self._job.settings.seed
        if (mix := job.mix) is None:
            return measure(encoder, self._teacher, job.held_out, seed, self._serving())
        before, after = (
            measure(AsServed(encoder, mix, alpha), self._teacher, job.held_out, seed)
            for alpha in (0.0, max(mix.alphas))
        )
        return {f"parent_{name}": value for name, value in before.items()} | after

    def _learn(self) -> Iterator[Event]:
        started = time.monotonic() - self._place.seconds
        kept = time.monotonic()
        objective = self._objective()
        total = self.steps
        every = max(1, total // POINTS_MAX)
        while self._place.epoch < self._settings.epochs:
            order = self._batches(self._place.epoch)
            while self._place.batch < len(order):
                share = (self._place.epoch + self._place.batch / len(order)) / self._settings.epochs
                self._smoothed.add(self._step(objective, order[self._place.batch], share))
                self._advance(time.monotonic() - started, every)
                point = self._smoothed.point(self._place.step, self._place.epoch)
                yield Event(
                    Phase.LEARNING,
                    point.step,
                    total,
                    point.epoch + 1,
                    point.loss,
                    point.states,
                )
                if time.monotonic() - kept >= CHECKPOINT_S:
                    self._keep()
                    kept = time.monotonic()
            self._place = _next_epoch(self._place)
        self._keep()

    def _step(self, objective: Objective, texts: list[int], share: float) -> Errors:
        """Learns from one batch, `share` of the way through."""
        packed = pack([self._job.learned.ids[index] for index in texts])
        targets = self._targets.of(texts, packed)
        for group in self._optimizer.param_groups:
            group["lr"] = self._settings.rate * _rate(share, self._place.step, self.steps)
        with torch.autocast("cpu", DTYPE):
            states = self._states(packed)
        if share < self._settings.near_share:
            errors = objective.near(states.float(), targets)
        else:
            errors = objective.through(states.float(), targets, packed)
        self._optimizer.zero_grad()
        errors.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._encoder.parameters(), GRADIENT_NORM_MAX)
        if not math.isfinite(float(norm)):
            raise FailedPrecondition(
                f"the error is no number any more at step {self._place.step}: try a rate below "
                f"{self._settings.rate}",
                reason="DISTILLATION_DIVERGED",
            )
        self._optimizer.step()
        return errors

    def _states(self, packed: PackedTokens) -> Tensor:
        """Of the student, at the boundary."""
        if (mix := self._job.mix) is not None:
            alpha = mix.drawn(self._settings.seed, self._place.step)
            return mix.states(self._encoder, packed, alpha)
        states: Tensor = self._encoder(packed, self._keys(packed))
        return states

    def _keys(self, packed: PackedTokens) -> Tensor:
        """The n-gram that serves each token in this step."""
        settings, keys = self._settings, ngram_keys(packed, self._encoder.outside)
        if settings.policy is MissPolicy.COMPUTE:
            return keys
        return shortened(keys, settings.dropout, settings.seed, self._place.step)

    def _serving(self) -> NDArray[np.int64]:
        """What serves held-out texts once a table has all n-grams that were learned from."""
        job, outside = self._job, self._encoder.outside
        asked, known = (keys_of_texts(one.ids, outside) for one in (job.held_out, job.learned))
        return served(job.settings.policy, asked, known, job.backbone.info.vocab)

    def _advance(self, seconds: float, every: int) -> None:
        place = self._place
        step, curve = place.step + 1, place.curve
        if step % every == 0:
            curve = (*curve, self._smoothed.point(step, place.epoch))
        self._place = Place(place.digest, place.epoch, place.batch + 1, step, seconds, curve)

    def _batches(self, epoch: int) -> list[list[int]]:
        settings = self._settings
        return batches(self._job.learned, settings.batch_tokens, settings.seed, epoch)

    @cached_property
    def steps(self) -> int:
        """Batches of all epochs."""
        return sum(len(self._batches(epoch)) for epoch in range(self._settings.epochs))

    def _objective(self) -> Objective:
        """Measures taken on the first batches of a fixed order; the same when it goes on."""
        samples: list[tuple[PackedTokens, Tensor]] = []
        taken = 0
        for texts in self._batches(0):
            packed = pack([self._job.learned.ids[index] for index in texts])
            samples.append((packed, self._targets.of(texts, packed)))
            taken += packed.tokens
            if taken >= SAMPLE_TOKENS:
                break
        layers = upper_layers(self._job.backbone, self._settings.boundary, DTYPE)
        return Objective.of(layers, samples, self._settings.scores_weight, self._settings.seed)

    def _resume(self) -> None:
        found = checkpoint.read(self._job.work, self._place.digest)
        if found is None:
            return self._keep()  # from now on the folder is this job's
        self._place, tensors = found
        extra = tensors.pop("smoothed")
        checkpoint.restore(self._encoder, self._optimizer, tensors)
        loss, scores, *states = extra.tolist()
        self._smoothed = Smoothed(loss, states, scores)

    def _keep(self) -> None:
        tensors = checkpoint.parameters(self._encoder, self._optimizer)
        smoothed = self._smoothed
        numbers = [smoothed.loss, smoothed.scores, *smoothed.states]
        tensors["smoothed"] = torch.tensor(numbers, dtype=torch.float64)
        checkpoint.write(self._job.work, self._place, tensors)

    def _facts(self, measures: Mapping[str, float]) -> EncoderFacts:
        job = self._job
        return EncoderFacts(
            backbone=job.backbone.name,
            backbone_digest=job.backbone.digest,
            form=self._encoder.form,
            seed=job.settings.seed,
            epochs=job.settings.epochs,
            corpus=job.corpus,
            corpus_digest=job.learned.digest,
            parent=job.parent_digest,
            texts=len(job.learned.ids),
            tokens=job.learned.tokens,
            seconds=round(self._place.seconds, 1),
            measures=dict(measures),
            policy=job.settings.policy,
        )

    def _arrays(self) -> dict[str, artifact.Numbers]:
        return {name: tensor.numpy() for name, tensor in self._encoder.tensors().items()}


def _begun(job: Job) -> LocalEncoder:
    """Before its first step."""
    form = job.settings.form(job.backbone.shape)
    if job.parent is None:
        encoder = LocalEncoder(form, job.backbone)
        encoder.start_from(job.backbone)
        return encoder
    if job.parent.facts.form != form:
        raise FailedPrecondition(
            f"the encoder to begin as is {job.parent.facts.form}, not {form}",
            reason="BOUNDARY_MISMATCH",
        )
    encoder = LocalEncoder.of(job.parent, job.backbone)
    if job.mix is not None:
        encoder.requires_grad_(requires_grad=False)
        encoder.network.requires_grad_()
    return encoder


def _optimizer(encoder: LocalEncoder, rate: float) -> torch.optim.AdamW:
    learning = [one for one in encoder.parameters() if one.requires_grad]
    matrices = [one for one in learning if one.dim() == 2]
    others = [one for one in learning if one.dim() != 2]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=rate, betas=BETAS)


def _rate(share: float, step: int, total: int) -> float:
    """Of the peak: up in a straight line, then down a cosine."""
    warm = min(1.0, (step + 1) / min(WARMUP_STEPS_MAX, max(1.0, WARMUP_SHARE * total)))
    return warm * (RATE_LAST + (1 - RATE_LAST) * (1 + math.cos(math.pi * share)) / 2)


def _next_epoch(place: Place) -> Place:
    return Place(place.digest, place.epoch + 1, 0, place.step, place.seconds, place.curve)
