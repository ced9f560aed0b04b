"""Measures the engine: batches of a given size and kind, for latency tables."""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import smile.model
from services.processor.engine import Engine, Prepared
from services.processor.options import EngineOptions
from services.processor.requests import Batch, Chunk, ModuleKey, Track
from services.processor.scheduling.calibrate import Subject, calibrate, load, save
from services.processor.scheduling.latency import Latencies, LatencyModel, LatencyTables
from smile.logs import get_logger
from smile.model import weights
from smile.model.initial import initial_tensors
from smile.model.loaded import LoadedModule
from smile.model.specs import (
    BackboneShape,
    HeadSpec,
    ModuleSpec,
    PetKind,
    PetSpec,
    Projection,
    Task,
)
from smile.model.tokenizer import TokenizedText
from smile.names import tenant_id
from smile.resources import Exactness

MODULES_MAX = 8  # distinct ones of a kind; the texts of a larger batch share them
SAMPLE = "The quick brown fox jumps over the lazy dog, and nobody minds at all."
RANK = 16
TOKENS_MAX = 2_048
NOBODY = tenant_id("nobody")


class Probe:
    """Computes batches of one track that nobody asked for. Nothing else may compute meanwhile.

    Materialised ones are measured over texts that no table knows, as the slowest of their kind:
    where more is found, the line of `LatencyModel` follows.

    Args:
        engine: Loaded.
        track: One of its.
    """

    def __init__(self, engine: Engine, track: Track) -> None:
        self._engine = engine
        self._track = track
        backbone = track.backbone
        self._modules: dict[PetKind, list[LoadedModule]] = {}
        shape = engine.shape(backbone)
        rank = min(RANK, shape.hidden)
        self._text_tokens_max = shape.tokens_max
        self._ids = sorted(set(engine.tokenizer(backbone).encode([SAMPLE])[0].ids))
        self._pets = {
            PetKind.NONE: PetSpec(PetKind.NONE),
            PetKind.PFEIFFER: PetSpec(PetKind.PFEIFFER, rank=rank),
            PetKind.HOULSBY: PetSpec(PetKind.HOULSBY, rank=rank),
            PetKind.LORA: PetSpec(
                PetKind.LORA,
                rank=min(8, rank),
                alpha=16.0,
                targets=(Projection.QUERY, Projection.VALUE),
            ),
            PetKind.BITFIT: PetSpec(PetKind.BITFIT),
            PetKind.DIFF_PRUNING: PetSpec(PetKind.DIFF_PRUNING, density=0.005),
            PetKind.MASK_BERT: PetSpec(PetKind.MASK_BERT, density=0.05),
        }

    @property
    def kinds(self) -> tuple[PetKind, ...]:
        """Kinds it can measure."""
        return tuple(self._pets)

    def __call__(self, tokens: int, texts: int, kind: PetKind) -> float:
        """Seconds of compute; as many texts as needed where so few cannot hold so many tokens."""
        texts = max(texts, -(-tokens // self._text_tokens_max))
        modules = self._modules.get(kind) or self._load(kind)
        chunks = [
            self._chunk(number, (tokens + number) // texts, kind, number % len(modules))
            for number in range(texts)
        ]
        batch = Batch.of(self._track.backbone, chunks)
        prepared = self._engine.prepare(batch, modules[: len(batch.parts)])
        return self._seconds(prepared)

    def _seconds(self, prepared: Prepared) -> float:
        started = time.perf_counter()
        self._engine.compute(prepared)
        return time.perf_counter() - started

    def _chunk(self, number: int, tokens: int, kind: PetKind, module: int) -> Chunk:
        return Chunk(
            number=number,
            request=number,
            tenant=NOBODY,
            backbone=self._track.backbone,
            module=ModuleKey(NOBODY, f"{kind}-{module}", ""),
            due=0.0,
            deadline=0.0,
            texts=(self._text(max(tokens, 1), number),),
            tokens=tokens,
            exactness=self._track.exactness,
        )

    def _text(self, tokens: int, number: int) -> TokenizedText:
        """One like no other in its batch: what equal texts have in common is computed only once."""
        count = len(self._ids)
        stride = 1 + number // count
        ids = [self._ids[(number + place * stride) % count] for place in range(tokens)]
        return TokenizedText(ids)

    def _load(self, kind: PetKind) -> list[LoadedModule]:
        backbone = self._track.backbone
        shape = self._engine.shape(backbone)
        spec = ModuleSpec(
            backbone=backbone,
            backbone_digest=self._engine.digest(backbone),
            pet=self._placed(self._pets[kind], shape),
            head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("no", "yes")),
        )
        self._modules[kind] = [
            self._engine.load_module(
                spec, weights.encode(initial_tensors(spec, shape, seed=seed), spec)
            )
            for seed in range(MODULES_MAX)
        ]
        return self._modules[kind]

    def _placed(self, pet: PetSpec, shape: BackboneShape) -> PetSpec:
        """Where most modules begin, or where this track lets them."""
        placed = pet.placed(shape)
        if self._track.exactness is Exactness.EXACT:
            return placed
        least = self._engine.boundary(self._track.backbone) or 0
        last = shape.layers - 1
        return replace(placed, first_layer=min(max(placed.first_layer or 0, least), last))


def tables(engine: Engine, track: Track, folder: Path, budget_s: float) -> LatencyTables:
    """A track's tables on this machine: from the folder, or measured within about `budget_s`
    and kept there. Blocks.
    """
    subject = subject_of(engine, track)
    if (kept := load(folder, subject)) is not None:
        get_logger().info("latency tables read", file=subject.file_name, **_named(track))
        return kept
    probe = Probe(engine, track)
    clock = time.monotonic
    found = calibrate(probe, probe.kinds, tokens_max=TOKENS_MAX, budget_s=budget_s, clock=clock)
    measured = found.tables
    if found.calm:
        save(folder, subject, measured)
    get_logger().info(
        "latency tables measured",
        **_named(track),
        tokens_max=measured.alpha.tokens[-1],
        tokens_per_s=round(1 / max(measured.alpha.per_token, 1e-9)),
        calm=found.calm,
    )
    return measured


def learn(engine: Engine, latencies: Latencies, folder: Path, budget_s: float) -> None:
    """Tables for every track of a loaded engine that has none; without them it serves as well,
    so what goes wrong is only logged. Blocks for about `budget_s` a track; 0 measures nothing.
    """
    for track in engine.tracks if budget_s else ():
        try:
            if latencies.of(track) is None:
                latencies.learn(track, LatencyModel(tables(engine, track, folder, budget_s)))
        except Exception:
            get_logger().exception("a latency cannot be measured", **_named(track))
    engine.restart_counts()


def subject_of(engine: Engine, track: Track) -> Subject:
    """What the tables of a track here hold for."""
    options: EngineOptions = engine.options
    return Subject(
        backbone_digest=engine.digest(track.backbone),
        encoder_digest=engine.encoder_digest(track),
        device=f"{options.device.value} {_processor()}",
        precision=options.precision.value,
        kernels=options.kernels.value,
        threads=engine.threads,
        code=_code_digest(),
    )


def _named(track: Track) -> Mapping[str, str]:
    return {"backbone": track.backbone, "exactness": str(track.exactness)}


def _processor() -> str:
    """What this machine's processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _code_digest() -> str:
    """Of everything that computes: kernels and the mathematics around them."""
    digest = hashlib.sha256()
    (root,) = smile.model.__path__
    for path in sorted(Path(root).rglob("*")):
        if path.suffix in (".py", ".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
