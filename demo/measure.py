"""What the demonstration measures: quality on held-out texts, latency, memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from statistics import median
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from demo.news import Document
from demo.recipes import Recipe
from smile import Classification, Client, Embedding, Exactness
from smile.embedded.processes import rss_bytes

LATENCY_REQUESTS = 40


def quality(client: Client, recipe: Recipe) -> float:
    """The share that `recipe.measure` names, 0 to 1, over its held-out texts."""
    if recipe.labels:
        return rated(client, recipe, Exactness.EXACT)[0]
    return _nearest_agrees(client, recipe)


def rated(client: Client, recipe: Recipe, exactness: Exactness) -> tuple[float, float]:
    """The share of held-out texts labelled right, 0 to 1, and texts answered a second."""
    texts = [document.text for document in recipe.held_out]
    right = 0
    started = time.perf_counter()
    predictions = client.infer_many(recipe.vplm, texts, truncate=True, top_k=1, exactness=exactness)
    for document, prediction in zip(recipe.held_out, predictions, strict=True):
        assert isinstance(prediction.result, Classification)
        right += prediction.result.label == document.topic
    return right / len(texts), len(texts) / (time.perf_counter() - started)


def latency_p50_ms(client: Client, recipe: Recipe) -> float:
    """Median milliseconds of a request with one text, asked one after the other."""
    times_ms: list[float] = []
    for number in range(LATENCY_REQUESTS):
        text = recipe.held_out[number % len(recipe.held_out)].text
        started = time.perf_counter()
        client.infer(recipe.vplm, text, truncate=True)
        times_ms.append((time.perf_counter() - started) * 1e3)
    return median(times_ms)


def _nearest_agrees(client: Client, recipe: Recipe) -> float:
    """The archive is what was trained on; the queries are held out."""
    archive = _embedded(client, recipe.vplm, recipe.rows)
    queries = _embedded(client, recipe.vplm, recipe.held_out)
    nearest = (queries @ archive.T).argmax(axis=1)
    agrees = [
        recipe.rows[int(index)].topic == document.topic
        for index, document in zip(nearest, recipe.held_out, strict=True)
    ]
    return sum(agrees) / len(agrees)


def _embedded(client: Client, vplm: str, documents: Sequence[Document]) -> NDArray[np.float32]:
    """Unit-length vectors [documents, width]."""
    texts = [document.text for document in documents]
    vectors: list[tuple[float, ...]] = []
    for prediction in client.infer_many(vplm, texts, truncate=True):
        assert isinstance(prediction.result, Embedding)
        vectors.append(prediction.result.values)
    return np.array(vectors, dtype=np.float32)


class MemoryWatch:
    """The most resident memory that a process and all below it had while this was entered.

    Pages that processes share count once for each, so this is an upper bound.
    """

    def __init__(self, pid: int, *, every_s: float = 0.5) -> None:
        self._pid = pid
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory", daemon=True)
        self.bytes_max = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes_max = max(self.bytes_max, rss_bytes(self._pid))
            if self._stop.wait(self._every_s):
                return
