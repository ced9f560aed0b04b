"""One text, many vPLMs of one backbone: resolved at once, tokenised once, queued side by side.

The chunks of a fan-out hold the very same tokenised text and follow each other in the queue, so
they travel in the same batches, and a batch computes what equal texts have in common once: all
layers below its lowest PET module. Each module is let go of once it has answered: a fan-out over
more than memory holds does not keep what it is through with from what is still to come. Whatever is
wrong with one vPLM (absent, poisoned, not loadable) becomes that entry's answer and touches no
other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

from services.processor.answers import Question, check_bytes, predict_all, size_of
from services.processor.exactness import exactness_of
from services.processor.memory.demand import Demand, LoadTime
from services.processor.rentals import Rentals
from services.processor.requests import (
    LOOK_UPS_MORE,
    VERSION_GONE,
    Answered,
    Asked,
    Chunk,
    FanoutRequest,
    ModuleKey,
    Ride,
    Target,
    estimate,
)
from services.processor.resolver import Resolver
from services.processor.scheduling.admission import Permit
from smile.errors import Cancelled, InvalidArgument, SmileError, Unavailable
from smile.model.specs import BackboneShape, ModuleSpec
from smile.model.tokenizer import TokenizedText
from smile.resources import Exactness, FanoutAnswer, FanoutResult, Prediction, Timings

LOOK_UPS_MAX = 64  # names of one fan-out that storage is asked about at a time
INLINE_ANSWERS_MAX = 64  # more than these are put into words beside the event loop

Module = TypeVar("Module")
Found: TypeAlias = Target | SmileError
Outcomes: TypeAlias = dict[ModuleKey, Answered | SmileError]


class Serving(Protocol):
    """What a fan-out asks of the engine."""

    @property
    def text_tokens_max(self) -> int: ...
    def check(self, spec: ModuleSpec, exactness: Exactness) -> None: ...
    def shape(self, backbone: str) -> BackboneShape: ...


@dataclass(frozen=True, slots=True)
class Ways(Generic[Module]):
    """What a fan-out goes through.

    Attributes:
        tokenize: Backbone, text and whether to cut it, to its tokens.
        outcomes: Queues chunks together and tells what came of each, and of one as soon as it is
            known.
        numbers: The next number of a request or chunk.
        due_s_max: A chunk is due after this long even if its deadline is later.
        answer_bytes_max: Of an answer, about: what a message may have.
    """

    engine: Serving
    resolver: Resolver
    demand: Demand[Module]
    rentals: Rentals
    pool: Executor
    tokenize: Callable[[str, str, bool], Awaitable[TokenizedText]]
    outcomes: Callable[
        [int, Sequence[Chunk], Callable[[Chunk], None]],
        Awaitable[Sequence[Answered | BaseException]],
    ]
    numbers: Callable[[], int]
    clock: Callable[[], float]
    due_s_max: float
    answer_bytes_max: int


class Fanouts(Generic[Module]):
    """Answers fan-outs that were admitted. For use on the event loop only."""

    def __init__(self, ways: Ways[Module]) -> None:
        self._ways = ways

    async def answer(self, request: FanoutRequest, permit: Permit) -> FanoutResult:
        """What each vPLM says of the text.

        Raises:
            InvalidArgument: the vPLMs are of several backbones, or their answers too large.
            TextTooLong: the text has too many tokens and is not to be cut.
        """
        found = await self._resolved(request, request.asked)
        targets = {one.key: one for one in found if isinstance(one, Target)}
        backbone = _one_backbone(targets.values())
        if backbone is None:
            return FanoutResult(_errors(found), _timings(request, [], [], self._ways.clock()))
        self._check_size(request, [one for one in found if isinstance(one, Target)])
        tokens = await self._ways.tokenize(backbone, request.text, request.truncate)
        guess = estimate(request.text, self._ways.engine.text_tokens_max) * len(found)
        permit.settle(guess, len(tokens) * len(targets))
        outcomes, waited = await self._asked(request, targets, tokens)
        for _ in range(LOOK_UPS_MORE):
            again = await self._resolved_again(request, backbone, found, outcomes)
            if not again:
                break
            more, waited_more = await self._asked(request, again, tokens)
            targets |= again
            outcomes |= more
            waited += waited_more
        predictions = await self._predictions(request, targets, tokens, outcomes)
        entries = tuple(_entry(one, outcomes, predictions) for one in found)
        rides = [one.ride for one in outcomes.values() if isinstance(one, Answered)]
        return FanoutResult(entries, _timings(request, rides, waited, self._ways.clock()))

    async def _resolved(
        self,
        request: FanoutRequest,
        names: Sequence[Asked | SmileError],
        *,
        renewed: bool = False,
    ) -> list[Found]:
        """Where each name points, or why it does not."""
        turn = asyncio.Semaphore(LOOK_UPS_MAX)
        resolver = self._ways.resolver
        resolve = resolver.renewed if renewed else resolver.target

        async def look_up(asked: Asked | SmileError) -> Found:
            if isinstance(asked, SmileError):
                return asked
            async with turn:
                try:
                    target = await resolve(asked, request.routing_key)
                    exactness = self._exactness(request, target)
                    self._ways.engine.check(target.spec, exactness)
                except SmileError as error:
                    return error
                return target

        return list(await asyncio.gather(*(look_up(asked) for asked in names)))

    async def _resolved_again(
        self, request: FanoutRequest, backbone: str, found: list[Found], outcomes: Outcomes
    ) -> dict[ModuleKey, Target]:
        """What is to be asked instead of versions that were gone before they were loaded. Puts
        what names point to now into `found`.
        """
        gone = [
            place
            for place, one in enumerate(found)
            if isinstance(one, Target) and isinstance(outcomes[one.key], VERSION_GONE)
        ]
        names = [request.asked[place] for place in gone]
        again: dict[ModuleKey, Target] = {}
        renewed = await self._resolved(request, names, renewed=True)
        for place, one in zip(gone, renewed, strict=True):
            found[place] = one
            if not isinstance(one, Target):
                continue
            if one.spec.backbone != backbone:
                found[place] = Unavailable(f"{one.name.vplm} was created again on another backbone")
            elif not isinstance(outcomes.get(one.key), Answered):
                again[one.key] = one
        return again

    def _check_size(self, request: FanoutRequest, targets: Sequence[Target]) -> None:
        hidden = self._ways.engine.shape(targets[0].spec.backbone).hidden
        size = sum(size_of(request, target.spec.head, hidden) for target in targets)
        check_bytes(size, self._ways.answer_bytes_max)

    async def _asked(
        self, request: FanoutRequest, targets: dict[ModuleKey, Target], tokens: TokenizedText
    ) -> tuple[Outcomes, list[LoadTime]]:
        """What came of each module, and how long each was waited for."""
        number = self._ways.numbers()
        entered: dict[ModuleKey, LoadTime] = {}
        needed: set[ModuleKey] = set()
        outcomes: Outcomes = {}

        def leave(key: ModuleKey) -> None:
            needed.remove(key)
            self._ways.demand.leave(number, key)

        try:
            for key, target in targets.items():
                try:
                    entered[key] = self._enter(request, number, target)
                    needed.add(key)
                except SmileError as error:
                    outcomes[key] = error
            chunks = [self._chunk(request, number, targets[key], tokens) for key in entered]
            came = await self._ways.outcomes(number, chunks, lambda chunk: leave(chunk.module))
            for key, one in zip(entered, came, strict=True):
                if isinstance(one, BaseException) and not isinstance(one, SmileError):
                    raise one
                outcomes[key] = one
        finally:
            for key in list(needed):
                leave(key)
            for key in entered:
                self._end(targets[key], outcomes.get(key))
        return outcomes, list(entered.values())

    def _enter(self, request: FanoutRequest, number: int, target: Target) -> LoadTime:
        """Raises `SmileError` where the vPLM comes faster than was rented, or cannot be loaded, or
        its terms have changed to what its module does not allow.
        """
        ways = self._ways
        ways.engine.check(target.spec, self._exactness(request, target))
        if (rental := ways.rentals.of(target.name.vplm)) is None:
            return ways.demand.enter(number, target)
        ways.rentals.begin(rental, 1, ways.clock())
        try:
            load = ways.demand.enter(number, target)
        except SmileError as error:
            ways.rentals.end(rental, 1, error)
            raise
        rental.serves(target)
        rental.found(waited=load.since is not None)
        return load

    def _end(self, target: Target, outcome: Answered | SmileError | None) -> None:
        if (rental := self._ways.rentals.of(target.name.vplm)) is not None:
            if isinstance(outcome, Answered):
                return self._ways.rentals.end(rental, 1, None)
            self._ways.rentals.end(rental, 1, outcome or Cancelled("the caller went away"))

    def _chunk(
        self, request: FanoutRequest, number: int, target: Target, tokens: TokenizedText
    ) -> Chunk:
        return Chunk(
            number=self._ways.numbers(),
            request=number,
            tenant=request.tenant,
            backbone=target.spec.backbone,
            module=target.key,
            due=min(request.deadline, request.arrived + self._ways.due_s_max),
            deadline=request.deadline,
            texts=(tokens,),
            tokens=len(tokens),
            kind=target.spec.pet.kind,
            vplm=target.name.vplm,
            exactness=self._exactness(request, target),
            domain=target.spec.domain,
        )

    def _exactness(self, request: FanoutRequest, target: Target) -> Exactness:
        return exactness_of(self._ways, target, request.exactness)

    async def _predictions(
        self,
        request: FanoutRequest,
        targets: dict[ModuleKey, Target],
        tokens: TokenizedText,
        outcomes: Outcomes,
    ) -> dict[ModuleKey, Prediction]:
        answered = {key: one for key, one in outcomes.items() if isinstance(one, Answered)}
        heads = [targets[key].spec.head for key in answered]
        questions = [Question(request.text, tokens, head, request.top_k) for head in heads]
        outputs = [one.outputs[0] for one in answered.values()]
        if len(outputs) <= INLINE_ANSWERS_MAX:
            predictions = predict_all(questions, outputs)
        else:
            loop = asyncio.get_running_loop()
            predictions = await loop.run_in_executor(
                self._ways.pool, predict_all, questions, outputs
            )
        return dict(zip(answered, predictions, strict=True))


def _one_backbone(targets: Iterable[Target]) -> str | None:
    """The backbone that all are of; None where there are none. Raises `InvalidArgument`."""
    first: Target | None = None
    for target in targets:
        first = first or target
        if target.spec.backbone != first.spec.backbone:
            raise InvalidArgument(
                f"a fan-out is over one backbone, got {first.name.vplm} on "
                f"'{first.spec.backbone}' and {target.name.vplm} on '{target.spec.backbone}'; ask "
                f"once for each backbone",
                reason="FANOUT_BACKBONES_DIFFER",
                metadata={"first": first.spec.backbone, "other": target.spec.backbone},
            )
    return first.spec.backbone if first else None


def _errors(found: Sequence[Found]) -> tuple[SmileError, ...]:
    return tuple(one for one in found if isinstance(one, SmileError))


def _entry(
    found: Found, outcomes: Outcomes, predictions: dict[ModuleKey, Prediction]
) -> FanoutAnswer | SmileError:
    if isinstance(found, SmileError):
        return found
    outcome = outcomes[found.key]
    if isinstance(outcome, SmileError):
        return outcome
    version = found.version
    return FanoutAnswer(
        predictions[found.key],
        version.name,
        version.digest,
        version.origin,
        outcome.materialization,
    )


def _timings(
    request: FanoutRequest, rides: Sequence[Ride], waited: Sequence[LoadTime], now: float
) -> Timings:
    """Of the whole fan-out; nothing but the total where nothing was computed."""
    batches = {ride.number: ride for ride in rides}.values()
    largest = max(batches, key=lambda ride: ride.texts, default=None)
    return Timings(
        queue_s=min((ride.started for ride in batches), default=request.arrived) - request.arrived,
        load_s=max((load.total_s for load in waited), default=0.0),
        compute_s=sum(ride.compute_s for ride in batches),
        total_s=now - request.arrived,
        batch_texts=largest.texts if largest else 0,
        batch_vplms=largest.vplms if largest else 0,
    )
