"""Inference: what the processor answers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import islice
from typing import TypeVar, Unpack

from smile import codec
from smile.client import options as o
from smile.client.calls import INFER_TIMEOUT_S, READ_TIMEOUT_S, Calls, asking
from smile.client.scope import Scope
from smile.errors import InvalidArgument, TooManyTexts
from smile.limits import INFER_TEXTS_MAX
from smile.names import VersionName
from smile.resources import Exactness, FanoutResult, InferResult, Prediction, ProcessorStats
from smile.v1 import processor_pb2, resources_pb2

NAMES_REMEMBERED_MAX = 20_000

T = TypeVar("T")


class InferenceCalls(Calls):
    """Asking vPLMs."""

    async def infer(
        self, vplm: str, texts: str | Sequence[str], **options: Unpack[o.InferOptions]
    ) -> InferResult:
        """The answers to one text or several, in their order. Keywords: `InferOptions`.

        `vplm` may also be the full name of one version.

        Raises:
            TooManyTexts: more than 10,000 texts; use `infer_many`.
            TextEmpty, TextTooLong: the message names the text by its index.
            NotFound: there is no such vPLM, version or alias.
            Overloaded: the queue is full, or the vPLM is asked for faster than was rented, for
                longer than `timeout`; come back after `retry_after` seconds.
        """
        o.known(options, o.InferOptions)
        asked = checked([texts] if isinstance(texts, str) else texts)
        with asking():
            request = processor_pb2.InferRequest(
                name=self._servable(vplm, options.get("version")),
                texts=asked,
                alias=options.get("alias", ""),
                truncate=options.get("truncate", False),
                top_k=options.get("top_k", 0),
                routing_key=options.get("routing_key", ""),
                exactness=_exactness(options),
            )

        send = partial(self._connection.processor.Infer, request)
        return codec.infer_from_pb(await self._ask(request.name, len(asked), send, options))

    async def infer_fanout(
        self, text: str, vplms: Sequence[str], **options: Unpack[o.FanoutOptions]
    ) -> FanoutResult:
        """What each of 1 to 1,000 vPLMs of one backbone says of a text, in their order; what they
        have in common is computed once. Keywords: `FanoutOptions`.

        A vPLM is named by id or full name, `id@alias` to follow another alias than `serving`, or
        the full name of one version. What is wrong with one vPLM alone is an error in its place;
        `FanoutResult.answers` raises the first of them.

        Raises:
            TextEmpty, TextTooLong: of the text.
            InvalidArgument: no vPLM or too many, or their backbones differ.
            Overloaded: the queue is full for longer than `timeout`; come back after `retry_after`
                seconds.
        """
        o.known(options, o.FanoutOptions)
        targets = [self._fanout_target(vplm, options.get("alias", "")) for vplm in vplms]
        with asking():
            request = processor_pb2.InferFanoutRequest(
                targets=targets,
                text=checked([text])[0],
                truncate=options.get("truncate", False),
                top_k=options.get("top_k", 0),
                routing_key=options.get("routing_key", ""),
                exactness=_exactness(options),
            )

        send = partial(self._connection.processor.InferFanout, request)
        return codec.fanout_from_pb(await self._ask("", len(targets), send, options))

    async def infer_many(
        self,
        vplm: str,
        texts: Iterable[str] | AsyncIterable[str],
        *,
        batch_size: int = 64,
        concurrency: int = 4,
        **options: Unpack[o.InferOptions],
    ) -> AsyncGenerator[Prediction, None]:
        """The answers to any number of texts, in their order, as they come.

        Up to `concurrency` requests of `batch_size` texts are under way at a time. A full queue is
        waited for as long as it asks, up to the timeout of a request; any other error ends the
        iteration.
        """
        if not 1 <= batch_size <= INFER_TEXTS_MAX or concurrency < 1:
            raise InvalidArgument(
                f"batch_size must be 1 to {INFER_TEXTS_MAX} and concurrency at least 1, "
                f"got {batch_size} and {concurrency}"
            )

        async def ask(batch: list[str], first: int) -> InferResult:
            with _numbered(first):
                return await self.infer(vplm, batch, **options)

        asked = 0
        under_way: deque[asyncio.Task[InferResult]] = deque()
        try:
            async for batch in _batches(texts, batch_size):
                under_way.append(asyncio.create_task(ask(batch, asked)))
                asked += len(batch)
                if len(under_way) >= concurrency:
                    for prediction in (await under_way.popleft()).predictions:
                        yield prediction
            while under_way:
                for prediction in (await under_way.popleft()).predictions:
                    yield prediction
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def stats(self, *, timeout: float | None = None) -> ProcessorStats:
        """How the processor is doing: counts since its start and levels now."""
        with asking():
            stats = await self._connection.processor.GetStats(
                processor_pb2.GetStatsRequest(), timeout=timeout or READ_TIMEOUT_S
            )
        return codec.stats_from_pb(stats)

    async def _ask(
        self,
        vplm: str,
        texts: int,
        send: Callable[..., Awaitable[T]],
        options: o.InferOptions | o.FanoutOptions,
    ) -> T:
        """What `send` gives, which takes a timeout: by default sent when the processor may be asked
        about so many texts of `vplm`, or of all where that is empty.
        """

        timeout = options.get("timeout")
        timeout = INFER_TIMEOUT_S if timeout is None else timeout
        if not options.get("patient", True):
            with asking():
                return await send(timeout=timeout)

        async def ask(left_s: float) -> T:
            with asking():
                return await send(timeout=left_s)

        return await self._connection.pace.ask(vplm, texts, ask, timeout)

    def _fanout_target(self, text: str, alias: str) -> processor_pb2.FanoutTarget:
        vplm, at, own_alias = text.partition("@")
        name = self._scope.servable(vplm)
        if isinstance(name, VersionName) and not at:
            return processor_pb2.FanoutTarget(name=str(name))
        return processor_pb2.FanoutTarget(name=str(name), alias=own_alias if at else alias)

    def _servable(self, vplm: str, version: int | None) -> str:
        return _servable(self._scope, vplm, version)


@lru_cache(maxsize=NAMES_REMEMBERED_MAX)  # callers ask the same ones again and again
def _servable(scope: Scope, vplm: str, version: int | None) -> str:
    return str(scope.servable(vplm) if version is None else scope.version(vplm, version))


def checked(texts: Iterable[str]) -> list[str]:
    """`texts` as a list. Raises `TooManyTexts`, and `InvalidArgument` for what is no text."""
    found = list(texts)
    if len(found) > INFER_TEXTS_MAX:
        raise TooManyTexts(
            f"one request takes at most {INFER_TEXTS_MAX} texts, got {len(found)}: use infer_many",
            metadata={"limit": str(INFER_TEXTS_MAX), "value": str(len(found))},
        )
    for index, text in enumerate(found):
        if not isinstance(text, str):
            raise InvalidArgument(f"texts[{index}] must be a str, got {type(text).__name__}")
    return found


def _exactness(options: o.InferOptions | o.FanoutOptions) -> resources_pb2.Exactness.ValueType:
    """Raises `InvalidSpec` for what is none."""
    if (given := options.get("exactness")) is None:
        return resources_pb2.EXACTNESS_UNSPECIFIED
    number: resources_pb2.Exactness.ValueType = codec.EXACTNESSES.to_pb(
        o.choice(Exactness, given, "exactness")
    )
    return number


@contextmanager
def _numbered(first: int) -> Iterator[None]:
    """Tells where a batch lies, in errors that name a text by its index in the batch."""
    try:
        yield
    except InvalidArgument as error:
        if first == 0:
            raise
        raise type(error)(
            f"in the batch that begins with text {first}: {error.message}",
            reason=error.reason,
            metadata={**error.metadata, "batch_first": str(first)},
            violations=error.violations,
        ) from error


async def _batches(
    texts: Iterable[str] | AsyncIterable[str], size: int
) -> AsyncIterator[list[str]]:
    """Lists of `size` texts; an ordinary iterable is read in a thread, for it may block."""
    if not isinstance(texts, AsyncIterable):
        iterator: Iterator[str] = iter(texts)
        while batch := await asyncio.to_thread(lambda: list(islice(iterator, size))):
            yield batch
        return
    batch = []
    async for text in texts:
        batch.append(text)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
