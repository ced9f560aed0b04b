"""A request from admission to answer, and the one seam between event loop and device thread.

admit → resolve → (load) → gate → tokenise → queue → [device thread] → answer. A long request goes
in slices, a few at a time, and each slice in chunks that other tenants' chunks come between.
Whatever ends a request early (its deadline, its caller leaving, a bad text) takes its chunks out of
the queue before they are computed.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from services.processor.answers import Question, check_size, predict_all
from services.processor.entrance import Ask, Doors, Entrance
from services.processor.exactness import checked_exactness
from services.processor.fanout import Fanouts, Ways
from services.processor.lanes.device import Report
from services.processor.lanes.dispatch import Dispatch, Work
from services.processor.lanes.gate import Gate
from services.processor.lanes.gathering import Gathering
from services.processor.lanes.sequence import Turnstile
from services.processor.lanes.trace import Facts, Gauge, Lane, Trace
from services.processor.materialize.level import StandInLevel
from services.processor.memory.demand import Demand, LoadTime
from services.processor.memory.loader import Loader
from services.processor.metering import ProcessorMeter
from services.processor.rentals import Rentals
from services.processor.requests import (
    LOOK_UPS_MORE,
    VERSION_GONE,
    Answered,
    Asked,
    Chunk,
    ChunkLimits,
    Failed,
    FanoutRequest,
    InferenceRequest,
    Ride,
    Target,
    estimate,
    estimate_all,
    runs,
    slices,
)
from services.processor.resolver import Resolver
from services.processor.scheduling.admission import Admission, Permit
from services.processor.scheduling.latency import Latencies
from services.processor.stats import Counters, Gauges, TenantClass
from smile.errors import Unavailable
from smile.model.specs import BackboneShape, ModuleSpec
from smile.model.tokenizer import TextTokenizer, TokenizedText
from smile.names import TenantId
from smile.resources import (
    Exactness,
    FanoutResult,
    InferResult,
    Materialization,
    Prediction,
    ProcessorStats,
    Timings,
)

STOPPING = "the processor is stopping"
JOIN_S = 30.0
INLINE_NUMBERS_MAX = 4_096  # more than these are turned into answers beside the event loop
INLINE_CHARS_MAX = 500  # more than these are tokenised beside it; a hop costs about as much as 100

Module = TypeVar("Module")


class Engine(Protocol):
    """What the pipeline asks of the engine; computing is the lanes'."""

    @property
    def backbones(self) -> tuple[str, ...]: ...
    @property
    def text_tokens_max(self) -> int: ...
    @property
    def tokens_asked(self) -> int: ...
    @property
    def tokens_packed(self) -> int: ...
    def tokenizer(self, backbone: str) -> TextTokenizer: ...
    def check(self, spec: ModuleSpec, exactness: Exactness) -> None: ...
    def level(self) -> StandInLevel: ...
    def shape(self, backbone: str) -> BackboneShape: ...


class Computing(Protocol[Module]):
    """What takes batches from the dispatch and computes them."""

    def start(self, tell: Callable[[Report[Module]], None]) -> None: ...
    def join(self, timeout_s: float) -> None: ...


@dataclass(frozen=True, slots=True)
class Collaborators(Generic[Module]):
    """What a pipeline works with."""

    engine: Engine
    resolver: Resolver
    loader: Loader[Module]
    dispatch: Dispatch[Module]
    lanes: Computing[Module]
    admission: Admission
    rentals: Rentals
    pool: Executor
    clock: Callable[[], float]
    trace: Trace
    latencies: Latencies = field(default_factory=Latencies)
    turnstile: Turnstile | None = None  # of sequential execution
    meter: ProcessorMeter = field(default_factory=ProcessorMeter)


@dataclass(slots=True, eq=False)
class _Ticket:
    """One request on its way."""

    number: int
    request: InferenceRequest
    target: Target
    permit: Permit
    load: LoadTime
    exactness: Exactness
    rides: dict[int, Ride] = field(default_factory=dict)
    looked_up: Materialization | None = None

    def ridden(self, answered: Sequence[Answered]) -> None:
        """Some of its chunks have been computed."""
        for answer in answered:
            self.rides[answer.ride.number] = answer.ride
            if (more := answer.materialization) is not None:
                self.looked_up = more if self.looked_up is None else self.looked_up + more

    def timings(self, now: float) -> Timings:
        arrived, rides = self.request.arrived, list(self.rides.values())
        first = largest = rides[0]
        for ride in rides[1:]:
            first = ride if ride.started < first.started else first
            largest = ride if ride.texts > largest.texts else largest
        return Timings(
            queue_s=first.started - arrived,
            load_s=self.load.total_s,
            compute_s=sum([ride.compute_s for ride in rides]),
            total_s=now - arrived,
            batch_texts=largest.texts,
            batch_vplms=largest.vplms,
        )


class Pipeline(Generic[Module]):
    """Answers requests. For use on the event loop only; `start` it there."""

    def __init__(self, parts: Collaborators[Module], limits: ChunkLimits) -> None:
        self._parts = parts
        self._limits = limits
        self.counters = Counters()
        self._doors = Doors(parts.admission, parts.turnstile, parts.clock, self.counters.asked)
        self._numbers = itertools.count(1)
        self._gathering = Gathering()
        self._gate = Gate(limits.module_texts_max)
        self._demand = Demand(
            parts.dispatch, parts.loader, parts.clock, self._gathering.settle, parts.trace
        )
        self._demand.on_loaded = self.counters.loaded
        self._fanouts = Fanouts(self._ways())
        self._started = False

    def start(self) -> None:
        """Start the lanes and admit requests."""
        loop = asyncio.get_running_loop()

        def tell(report: Report[Module]) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._hear, report)

        self._parts.lanes.start(tell)
        self._started = True
        self._parts.admission.open()

    async def close(self) -> None:
        """Admit nothing more, refuse what is queued, answer what was taken, end the lanes."""
        self._parts.admission.close(STOPPING)
        for chunk in self._parts.dispatch.close():
            self._gathering.settle(Failed(chunk, Unavailable(STOPPING, retry_after=1.0)))
        await self._demand.close()
        await self._parts.resolver.close()
        if self._started:
            await asyncio.to_thread(self._parts.lanes.join, JOIN_S)

    @property
    def demand(self) -> Demand[Module]:
        """Who brings modules into memory."""
        return self._demand

    def gauges(self) -> Gauges:
        """How full everything is."""
        engine, admission = self._parts.engine, self._parts.admission
        level = self._parts.dispatch.level()
        queue_texts = level.queue_texts + self._gate.texts_waiting
        padding = engine.tokens_packed - engine.tokens_asked
        return Gauges(
            level=replace(level, queue_texts=queue_texts),
            disk=self._parts.loader.disk_level(),
            backbones=engine.backbones,
            queue_texts_max=admission.limits.texts_max,
            refused=admission.refused,
            refusals=dict(admission.refusals),
            rented=len(self._parts.rentals),
            padding_share=padding / max(engine.tokens_packed, 1),
            feed_live=self._parts.resolver.freshness.live,
            lookups=dict(self._parts.resolver.freshness.lookups),
            stand_ins=engine.level(),
        )

    def stats(self) -> ProcessorStats:
        """How the processor is doing."""
        return self.counters.stats(self.gauges())

    async def infer(self, request: InferenceRequest) -> InferResult:
        """The answers to a request's texts.

        Raises:
            Overloaded: the queue is full, or the vPLM is asked for faster than was rented; refused
                before any work is done.
            QuotaExceeded: the tenant has less left of a limit of its day than it asks for.
            NotFound: there is no such vPLM, alias or version.
            TextTooLong: a text has too many tokens and is not to be truncated.
            FailedPrecondition: the vPLM's backbone is not served here, or not materialised, or its
                module begins below what is.
            DataCorrupted: the stored module, or what it answers, is unusable.
            DeadlineExceeded: the time ran out; what had not been computed never is.
            Unavailable: storage is away and what is needed was not kept, or the processor is
                stopping.
        """
        try:
            tokens = request.tokens_estimate(self._parts.engine.text_tokens_max)
            ask = Ask(request.vplm.tenant, len(request.texts), tokens)
            await self._parts.meter.admit(ask.tenant, ask.texts, ask.tokens)
            result = await self._rented(request, ask)
        except BaseException as error:
            self.counters.refused(error)
            raise
        self.counters.answered(self._class_of(request.vplm.tenant), result.timings)
        self._parts.meter.answered(request.vplm)
        return result

    async def _rented(self, request: InferenceRequest, ask: Ask) -> InferResult:
        rentals = self._parts.rentals
        if (rental := rentals.of(request.vplm)) is None:
            return await self._infer(request, ask)
        rentals.begin(rental, len(request.texts), self._parts.clock())
        error: BaseException | None = None
        try:
            return await self._infer(request, ask)
        except BaseException as raised:
            error = raised
            raise
        finally:
            rentals.end(rental, len(request.texts), error)

    async def _infer(self, request: InferenceRequest, ask: Ask) -> InferResult:
        number = next(self._numbers)
        async with self._admitted(ask, request.arrived, request.deadline) as permit:
            self._mark(Lane.ADMIT, request.arrived, number)
            started = self._parts.clock()
            asked = Asked(request.vplm, request.alias, request.version)
            target = await self._parts.resolver.target(asked, request.routing_key)
            self._mark(Lane.RESOLVE, started, number)
            for _ in range(LOOK_UPS_MORE):
                counted = permit.tokens
                try:
                    return await self.submit(number, request, target, permit)
                except VERSION_GONE:  # deleted, perhaps created again, before it was loaded
                    permit.settle(permit.tokens, counted)
                    target = await self._parts.resolver.renewed(asked, request.routing_key)
                    number = next(self._numbers)
            return await self.submit(number, request, target, permit)

    async def infer_fanout(self, request: FanoutRequest) -> FanoutResult:
        """What each of many vPLMs says of one text.

        Raises:
            As `infer`, but for what concerns one vPLM alone, which is that entry's answer.
        """
        tokens = estimate(request.text, self._parts.engine.text_tokens_max) * len(request.asked)
        ask = Ask(request.tenant, len(request.asked), tokens)
        try:
            await self._parts.meter.admit(ask.tenant, ask.texts, ask.tokens)
            async with self._admitted(ask, request.arrived, request.deadline) as permit:
                result = await self._fanouts.answer(request, permit)
        except BaseException as error:
            self.counters.refused(error)
            raise
        self.counters.answered(self._class_of(request.tenant), result.timings)
        self._parts.meter.answered_fanout(request.tenant)
        return result

    def _class_of(self, tenant: TenantId) -> TenantClass:
        return TenantClass.of(self._parts.rentals.rented_weight(tenant))

    def _admitted(self, ask: Ask, arrived: float, deadline: float) -> Entrance:
        """Room for what is asked, until the deadline; see `Entrance`."""
        return Entrance(self._doors, ask, arrived, deadline)

    async def submit(
        self, number: int, request: InferenceRequest, target: Target, permit: Permit
    ) -> InferResult:
        """The answers of one version to an admitted request."""
        exactness = checked_exactness(self._parts, target, request.exactness)
        hidden = self._parts.engine.shape(target.spec.backbone).hidden
        check_size(request, target.spec.head, hidden, self._limits.answer_bytes_max)
        load = self._demand.enter(number, target)
        if (rental := self._parts.rentals.of(request.vplm)) is not None:
            rental.serves(target)
            rental.found(waited=load.since is not None)
        ticket = _Ticket(number, request, target, permit, load, exactness)
        try:
            predictions = await self._predictions(ticket)
        finally:
            self._parts.dispatch.drop(number)
            self._demand.leave(number, target.key)
        assert len(predictions) == len(request.texts), "one prediction per text"
        version = target.version
        timings = ticket.timings(self._parts.clock())
        origin, looked_up = version.origin, ticket.looked_up
        return InferResult(predictions, version.name, version.digest, origin, timings, looked_up)

    async def _predictions(self, ticket: _Ticket) -> tuple[Prediction, ...]:
        texts, limits = ticket.request.texts, self._limits
        if len(texts) == 1:
            return tuple(await self._slice(ticket, (0, 1)))
        spans = list(
            slices(texts, texts_max=limits.slice_texts_max, tokens_max=limits.slice_tokens_max)
        )
        if len(spans) == 1:
            return tuple(await self._slice(ticket, spans[0]))
        window = asyncio.Semaphore(self._limits.slices_max)

        async def in_window(span: tuple[int, int]) -> list[Prediction]:
            async with window:
                return await self._slice(ticket, span)

        tasks = [asyncio.create_task(in_window(span)) for span in spans]
        try:
            parts = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return tuple(itertools.chain.from_iterable(parts))

    async def _slice(self, ticket: _Ticket, span: tuple[int, int]) -> list[Prediction]:
        texts, module = ticket.request.texts[slice(*span)], ticket.target.key
        await self._gate.enter(module, len(texts), ticket.request.deadline)
        try:
            return await self._through(ticket, texts, span[0])
        finally:
            self._gate.leave(module, len(texts))

    async def _through(self, ticket: _Ticket, texts: Sequence[str], first: int) -> list[Prediction]:
        started = self._parts.clock()
        tokens = await self._tokenize(ticket, texts, first)
        self._mark(Lane.TOKENISE, started, ticket.number, len(texts))
        chunks = [self._chunk(ticket, run) for run in self._runs(tokens)]
        answered = await self._gathering.answers(chunks, self._parts.dispatch.put)
        ticket.ridden(answered)
        started = self._parts.clock()
        predictions = await self._predicted(ticket, texts, tokens, answered)
        self._mark(Lane.ANSWER, started, ticket.number, len(texts))
        return predictions

    async def _predicted(
        self,
        ticket: _Ticket,
        texts: Sequence[str],
        tokens: Sequence[TokenizedText],
        answered: Sequence[Answered],
    ) -> list[Prediction]:
        head, top_k = ticket.target.spec.head, ticket.request.top_k
        outputs = [output for answer in answered for output in answer.outputs]
        questions = [
            Question(text, token, head, top_k) for text, token in zip(texts, tokens, strict=True)
        ]
        if sum(output.size for output in outputs) <= INLINE_NUMBERS_MAX:
            return predict_all(questions, outputs)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._parts.pool, predict_all, questions, outputs)

    async def _tokenize(
        self, ticket: _Ticket, texts: Sequence[str], first: int
    ) -> list[TokenizedText]:
        encode = self._parts.engine.tokenizer(ticket.target.spec.backbone).encode
        truncate = ticket.request.truncate
        if sum(map(len, texts)) <= INLINE_CHARS_MAX:
            tokens = encode(texts, truncate=truncate, first_index=first)
        else:
            loop = asyncio.get_running_loop()
            tokens = await loop.run_in_executor(
                self._parts.pool, lambda: encode(texts, truncate=truncate, first_index=first)
            )
        longest = self._parts.engine.text_tokens_max
        ticket.permit.settle(estimate_all(texts, longest), sum(map(len, tokens)))
        return tokens

    def _runs(self, tokens: Sequence[TokenizedText]) -> list[tuple[TokenizedText, ...]]:
        limits = self._limits
        if len(tokens) == 1:
            return [tuple(tokens)]
        texts_max, tokens_max = limits.chunk_texts_max, limits.chunk_tokens_max
        return list(runs(tokens, texts_max=texts_max, tokens_max=tokens_max))

    def _chunk(self, ticket: _Ticket, texts: tuple[TokenizedText, ...]) -> Chunk:
        request = ticket.request
        return Chunk(
            number=next(self._numbers),
            request=ticket.number,
            tenant=request.vplm.tenant,
            backbone=ticket.target.spec.backbone,
            module=ticket.target.key,
            due=min(request.deadline, request.arrived + self._limits.due_s_max),
            deadline=request.deadline,
            texts=texts,
            tokens=sum(map(len, texts)),
            kind=ticket.target.spec.pet.kind,
            vplm=request.vplm,
            exactness=ticket.exactness,
            domain=ticket.target.spec.domain,
        )

    def _ways(self) -> Ways[Module]:
        parts = self._parts

        async def tokenize(backbone: str, text: str, truncate: bool) -> TokenizedText:
            encode = parts.engine.tokenizer(backbone).encode
            loop = asyncio.get_running_loop()
            (tokens,) = await loop.run_in_executor(
                parts.pool, lambda: encode([text], truncate=truncate)
            )
            return tokens

        return Ways(
            engine=parts.engine,
            resolver=parts.resolver,
            demand=self._demand,
            rentals=parts.rentals,
            pool=parts.pool,
            tokenize=tokenize,
            outcomes=self._outcomes,
            numbers=self._numbers.__next__,
            clock=parts.clock,
            due_s_max=self._limits.due_s_max,
            answer_bytes_max=self._limits.answer_bytes_max,
        )

    async def _outcomes(
        self, request: int, chunks: Sequence[Chunk], settled: Callable[[Chunk], None]
    ) -> Sequence[Answered | BaseException]:
        """What came of each chunk of a request, queued together; left early, none is computed.
        `settled` is told of each as soon as that is known.
        """
        try:
            outcomes = await self._gathering.outcomes(
                chunks, self._parts.dispatch.put, lambda one: settled(one.chunk)
            )
        finally:
            self._parts.dispatch.drop(request)
        return [one.error if isinstance(one, Failed) else one for one in outcomes]

    def _mark(self, lane: Lane, started: float, request: int, texts: int = 0) -> None:
        if self._parts.trace.on:
            now = self._parts.clock()
            self._parts.trace.span(lane, started, now, Facts(request=request, texts=texts))
            self._parts.trace.level(Gauge.QUEUE_TEXTS, now, self._parts.admission.inside.texts)

    def _hear(self, report: Report[Module]) -> None:
        """What the device thread told."""
        for key in report.taken.wanted:
            self._demand.want(key)
        for failed in report.taken.failed:
            self._gathering.settle(failed)
        for outcome in report.outcomes:
            self._gathering.settle(outcome)
        if (work := report.taken.work) is not None:
            self.counters.computed(work, report)
            self._parts.meter.computed(report.outcomes, report.compute_s)
            if report.steady:
                self._learn(work, report.compute_s)
            self._demand.room_made()

    def _learn(self, work: Work[Module], compute_s: float) -> None:
        """A batch that nothing came between took so long."""
        self._parts.admission.computed(work.batch.tokens, compute_s)
        now = self._parts.clock()
        self._parts.latencies.observe(work.batch.track, work.table_s, compute_s, now)
