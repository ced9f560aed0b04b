"""The device: backbones, and batches over them.

A batch goes through `prepare` (packing, tables of who owns which rows, copies to the device) and
`compute`; the two may run in different threads, a batch ahead of each other.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from services.processor.lanes.trace import Facts, Lane, Trace
from services.processor.materialize.domains import ServedDomains
from services.processor.materialize.learning import Heard, LiveRows
from services.processor.materialize.level import StandInLevel
from services.processor.materialize.standin import Found, StandIn
from services.processor.options import EngineOptions, Precision
from services.processor.requests import Batch, Chunk, Computed, FloatArray, Materialized, Track
from smile.errors import DataCorrupted, FailedPrecondition, SmileError
from smile.limits import MIB
from smile.logs import get_logger
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.batch import MixedBatch
from smile.model.batched import BatchedEngine
from smile.model.initial import initial_tensors
from smile.model.kernels import KernelChoice, kernels_for
from smile.model.kernels.rows import own_row
from smile.model.loaded import DecodedModule, Decoder, LoadedModule
from smile.model.materialized import LookedUp
from smile.model.specs import BackboneShape, HeadSpec, ModuleSpec, PetKind, PetSpec, Task
from smile.model.tokenizer import TextTokenizer
from smile.representations import manifest
from smile.resources import Exactness, Materialization
from smile.standins import encoder_file

OPENED_AT_START_BYTES_MAX = 512 * MIB  # of a table: read in a fraction of a second
WARM_UP_TEXTS = ("a first text", "and a second one that is a little longer")


_DTYPES = {Precision.FLOAT32: torch.float32, Precision.BFLOAT16: torch.bfloat16}


@dataclass(frozen=True, slots=True)
class _Served:
    """One backbone at work."""

    engine: BatchedEngine
    decoder: Decoder
    stand_in: StandIn | None  # None: every layer is computed
    live: LiveRows | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A batch that only has to be computed."""

    backbone: str
    mixed: MixedBatch
    counts: tuple[int, ...]  # texts of each chunk
    lower: LookedUp | None = None
    told: tuple[Materialization, ...] = ()  # of each chunk, where lower layers were looked up


class Engine:
    """Backbones by name, ready after `load`. Immutable from then on; batches run one at a time."""

    def __init__(self, options: EngineOptions, trace: Trace | None = None) -> None:
        self._options = options
        self._trace = trace or Trace()
        self._device = torch.device(options.device.value)
        self._engines: dict[str, _Served] = {}
        self._text_tokens_max = 1
        self.tokens_asked = 0  # of texts in batches since start
        self.tokens_packed = 0  # and those computed for them, padding included

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of the backbones served."""
        return tuple(self._engines)

    @property
    def text_tokens_max(self) -> int:
        """The longest text that any backbone takes, in tokens."""
        return self._text_tokens_max

    @property
    def tracks(self) -> tuple[Track, ...]:
        """What batches there may be."""
        return tuple(
            Track(name, exactness)
            for name, served in self._engines.items()
            for exactness in Exactness
            if exactness is Exactness.EXACT or served.stand_in is not None
        )

    def encoder_digest(self, track: Track) -> str:
        """Of what stands in for lower layers; empty: nothing does."""
        exact = track.exactness is Exactness.EXACT
        return "" if exact else self._stand_in(track.backbone).digest

    def boundary(self, backbone: str) -> int | None:
        """The first layer that materialised answers compute; None: there are none."""
        found = self._engines[backbone].stand_in
        return None if found is None else found.boundary

    def live_rows(self) -> Mapping[str, LiveRows]:
        """Rows that stand in for lower layers, by backbone."""
        loaded = tuple(self._engines.items())  # at once: `load` may add one meanwhile
        found = {name: served.live for name, served in loaded}
        return {name: live for name, live in found.items() if live is not None}

    def level(self) -> StandInLevel:
        """What was looked up in place of lower layers, of all backbones."""
        found = [served.stand_in for served in self._engines.values()]
        return sum((one.level() for one in found if one is not None), StandInLevel())

    def restart_counts(self) -> None:
        """What was looked up so far was not asked for."""
        for served in self._engines.values():
            if served.stand_in is not None:
                served.stand_in.restart_counts()
            if served.live is not None:
                served.live.forget()

    def shape(self, backbone: str) -> BackboneShape:
        return self._engines[backbone].engine.backbone.shape

    def digest(self, backbone: str) -> str:
        return self._engines[backbone].engine.backbone.digest

    @property
    def options(self) -> EngineOptions:
        """What it was built with."""
        return self._options

    @property
    def threads(self) -> int:
        """CPU threads that compute."""
        return torch.get_num_threads()

    def tokenizer(self, backbone: str) -> TextTokenizer:
        return self._engines[backbone].engine.backbone.tokenizer

    def load(self) -> None:
        """Read every backbone and run one batch over each. Blocks for seconds.

        Raises:
            FailedPrecondition: a backbone's files are not there, or there is no such device.
            InvalidArgument, DataCorrupted, Unavailable: its files cannot be used or fetched.
        """
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise FailedPrecondition("this machine has no CUDA device that torch can use")
        if self._options.threads:
            torch.set_num_threads(self._options.threads)
        for source in self._options.sources:
            if source.name in self._engines:
                continue  # an earlier try got this far
            backbone = Backbone.load(source.locate(), source.name)
            served = self._served(backbone)
            self._warm_up(served)
            self._engines[source.name] = served
            self._text_tokens_max = max(self._text_tokens_max, backbone.shape.tokens_max)
            get_logger().info("backbone ready", backbone=source.name, digest=backbone.digest)

    def adopt(self) -> None:
        """Take in local encoders that were not there at `load`. Blocks for a second for each. For a
        thread beside those that compute.
        """
        for name, served in tuple(self._engines.items()):
            if name not in self._options.stand_ins or served.stand_in is not None:
                continue
            again = self._served(served.engine.backbone)
            if again.stand_in is not None:
                found = replace(served, stand_in=again.stand_in, live=again.live)
                self._engines[name] = found
                get_logger().info("answered materialised from now on", backbone=name)

    def check(self, spec: ModuleSpec, exactness: Exactness = Exactness.EXACT) -> None:
        """Raises `FailedPrecondition` if the module cannot be served here, or not so: its backbone
        is not, or has no stand-in for lower layers, or the module begins in one of these, or its
        domain is not.
        """
        served = self._engines.get(spec.backbone)
        if served is None:
            raise FailedPrecondition(
                f"backbone '{spec.backbone}' is not served here; served are "
                f"{', '.join(self._engines) or 'none'}",
                reason="BACKBONE_NOT_SERVED",
            )
        digest = served.engine.backbone.digest
        if digest != spec.backbone_digest:
            raise FailedPrecondition(
                f"the vPLM was made for backbone '{spec.backbone}' with digest "
                f"{spec.backbone_digest}; served here is {digest}",
                reason="BACKBONE_MISMATCH",
            )
        if exactness is Exactness.EXACT:
            return
        if served.stand_in is None:
            raise FailedPrecondition(
                f"backbone '{spec.backbone}' is answered exactly alone here: it has no local "
                f"encoder; see SMILE_PROCESSOR_SKIP",
                reason="NOT_MATERIALIZED",
            )
        served.stand_in.check(spec)

    def decode(self, spec: ModuleSpec, data: bytes) -> DecodedModule:
        """A stored module in serving form, still without a place in memory.

        Raises:
            FailedPrecondition: it was made for another backbone.
            DataCorrupted: the bytes are not a module of this spec, or not finite.
        """
        self.check(spec)
        served = self._engines[spec.backbone]
        tensors = weights.decode(data, spec, served.engine.backbone.shape)
        return served.decoder.decode(spec, tensors)

    def row_bytes(self, spec: ModuleSpec) -> tuple[int, ...] | None:
        """The sizes of the rows of such a module, if they are known without its bytes. Raises
        `FailedPrecondition` where it was made for another backbone.
        """
        self.check(spec)
        return self._engines[spec.backbone].decoder.row_bytes(spec)

    def load_module(self, spec: ModuleSpec, data: bytes) -> LoadedModule:
        """A stored module in memory of its own; raises what `decode` raises."""
        decoded = self.decode(spec, data)
        rows = [own_row(size, self._device) for size in decoded.row_bytes]
        return decoded.place(rows)

    def prepare(self, batch: Batch, modules: Sequence[LoadedModule]) -> Prepared:
        """The batch packed and grouped, ready for `compute`; `modules` are its parts'. For any
        thread, beside `compute`.
        """
        items = [
            (module, text)
            for part, module in zip(batch.parts, modules, strict=True)
            for chunk in part.chunks
            for text in chunk.texts
        ]
        exact = batch.exactness is Exactness.EXACT
        domains = () if exact else _domains(batch.chunks)
        mixed = MixedBatch.build(items, device=self._device, marks=domains)
        self.tokens_asked += batch.tokens
        self.tokens_packed += int(mixed.packed.ids.numel())
        counts = tuple(len(chunk.texts) for chunk in batch.chunks)
        if exact:
            return Prepared(batch.backbone, mixed, counts)
        started = time.monotonic()
        found = self._stand_in(batch.backbone).look_up(mixed)
        told = found.told(mixed, batch.chunks)
        self._traced(mixed, found.lower, started)
        self._hear(batch, mixed, found)
        return Prepared(batch.backbone, mixed, counts, found.lower, told)

    def compute(self, prepared: Prepared) -> list[Computed]:
        """What came of every chunk of the batch. For the device thread.

        No row depends on another's, so an output that is not finite, as finite weights too can
        bring about, is the fault of its own chunk's module and fails that chunk alone.
        """
        engine = self._engines[prepared.backbone].engine
        outputs = [output.values for output in engine.run(prepared.mixed, prepared.lower)]
        assert len(outputs) == sum(prepared.counts), "one output per text"
        found = iter(outputs)
        computed = [_checked(tuple(itertools.islice(found, count))) for count in prepared.counts]
        if prepared.lower is None:
            return computed
        return list(map(_with_told, computed, prepared.told))

    def give_way(self) -> None:
        """What the calling thread computes from now on gives way to all other threads."""
        for served in self._engines.values():
            served.engine.serving.kernels.give_way()

    def _served(self, backbone: Backbone) -> _Served:
        dtype = _DTYPES[self._options.precision]
        kernels = kernels_for(self._device, dtype, KernelChoice(self._options.kernels.value))
        engine = BatchedEngine.of(backbone, device=self._device, dtype=dtype, kernels=kernels)
        place = self._options.stand_ins.get(backbone.name)
        if place is None:
            return _Served(engine, Decoder(backbone, dtype), None)
        try:
            file = encoder_file(place.encoder, backbone.name, backbone.digest)
            found = StandIn(file, backbone, kernels, self._device, dtype)
        except SmileError as error:  # exact answers do without
            get_logger().error("a local encoder cannot be used", why=error.message)
            return _Served(engine, Decoder(backbone, dtype), None)
        domains = found.domains = ServedDomains(found.origin, place.domains)
        live = found.rows = LiveRows(found, self._options.learning, domains)
        _open_domains(domains)
        if place.table is not None:
            _open_small(live, place.table)
        return _Served(engine, Decoder(backbone, dtype), found, live)

    def _stand_in(self, backbone: str) -> StandIn:
        found = self._engines[backbone].stand_in
        assert found is not None, "checked when the request came"
        return found

    def _hear(self, batch: Batch, mixed: MixedBatch, found: Found) -> None:
        """Tell who learns what was asked by whom."""
        live = self._engines[batch.backbone].live
        if live is None or not live.learning:
            return
        tenants = [str(chunk.tenant) for chunk in batch.chunks for _ in chunk.texts]
        by_row = tuple(tenants[place] for place in mixed.order)
        starts = mixed.different.packed.offsets.cpu().numpy()
        places = mixed.different.places(mixed.packed).cpu().numpy()
        live.hear(Heard(found.lower.keys, starts, places, by_row, found.own))

    def _traced(self, mixed: MixedBatch, lower: LookedUp, started: float) -> None:
        if self._trace.on:
            found = int(lower.found.sum())
            facts = Facts(texts=len(mixed.order), tokens=len(lower.numbers), found=found)
            self._trace.span(Lane.LOOK_UP, started, time.monotonic(), facts)

    def _warm_up(self, served: _Served) -> None:
        backbone = served.engine.backbone
        module = _warm_up_module(served, self._device)
        texts = backbone.tokenizer.encode(WARM_UP_TEXTS)
        batch = MixedBatch.build([(module, text) for text in texts], device=self._device)
        served.engine.run(batch)
        if served.stand_in is not None and served.stand_in.boundary <= batch.boundary:
            served.engine.run(batch, served.stand_in.look_up(batch).lower)


def _domains(chunks: Sequence[Chunk]) -> tuple[str, ...]:
    """Of each text of the chunks; empty where all are `general`."""
    if not any(chunk.domain for chunk in chunks):
        return ()
    return tuple(chunk.domain for chunk in chunks for _ in chunk.texts)


def _open_domains(domains: ServedDomains) -> None:
    try:
        domains.renew()
    except (SmileError, OSError) as error:  # whoever looks after rows tries again
        get_logger().error("domains cannot be used", why=str(error))


def _open_small(live: LiveRows, folder: Path) -> None:
    """A table that is read in a moment; until a larger one is, rows are computed: whoever looks
    after rows opens it, in the background."""
    try:
        stated = manifest.read(folder)
        live.expect(stated)
        if stated.bytes <= OPENED_AT_START_BYTES_MAX:
            live.open(folder)
    except (SmileError, OSError) as error:  # rows are computed
        get_logger().error("a table cannot be used", why=str(error))


def _checked(outputs: tuple[FloatArray, ...]) -> Computed:
    if all(np.isfinite(values).all() for values in outputs):
        return outputs
    return DataCorrupted(
        "the module's answer has numbers that are not finite: its weights are unusable",
        reason="OUTPUT_NOT_FINITE",
    )


def _with_told(computed: Computed, told: Materialization) -> Computed:
    return Materialized(computed, told) if isinstance(computed, tuple) else computed


def _warm_up_module(served: _Served, device: torch.device) -> LoadedModule:
    backbone = served.engine.backbone
    spec = ModuleSpec(
        backbone=backbone.name,
        backbone_digest=backbone.digest,
        pet=PetSpec(PetKind.PFEIFFER, rank=8).placed(backbone.shape),
        head=HeadSpec(Task.SEQUENCE_CLASSIFICATION, ("no", "yes")),
    )
    decoded = served.decoder.decode(spec, initial_tensors(spec, backbone.shape, seed=0))
    return decoded.place([own_row(size, device) for size in decoded.row_bytes])
