"""An event loop in a thread of its own: how the sync face runs the async client."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeAlias, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
_Posts: TypeAlias = "SimpleQueue[Callable[[], None] | None]"
_END = object()


class Here:
    """Brings callbacks back: what the loop's thread calls runs in the thread that waits."""

    def __init__(self, posts: _Posts) -> None:
        self._posts = posts

    def __call__(self, callback: Callable[P, None] | None) -> Callable[P, None] | None:
        """`callback`, for use in the loop's thread; it returns at once."""
        if callback is None:
            return None

        def post(*args: P.args, **kwargs: P.kwargs) -> None:
            self._posts.put(lambda: callback(*args, **kwargs))

        return post


class LoopThread:
    """A loop that runs coroutines for other threads. Its thread starts with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def call(self, start: Callable[[Here], Coroutine[Any, Any, T]]) -> T:
        """The result of the coroutine that `start` makes.

        An exception in this thread meanwhile (Ctrl-C, or of a callback) cancels the coroutine.

        Raises:
            RuntimeError: the loop is closed, or this is its own thread, waiting for itself.
        """
        loop = self._running()
        posts: _Posts = SimpleQueue()
        tasks: list[asyncio.Task[T]] = []

        def begin() -> None:
            task = loop.create_task(start(Here(posts)))
            task.add_done_callback(lambda _: posts.put(None))
            tasks.append(task)

        def cancel() -> None:
            tasks[0].cancel()

        loop.call_soon_threadsafe(begin)
        try:
            while (callback := posts.get()) is not None:
                callback()
        except BaseException:
            loop.call_soon_threadsafe(cancel)
            while posts.get() is not None:
                pass  # what it still had to say is no longer wanted
            raise
        return tasks[0].result()

    def iterate(self, start: Callable[[], AsyncGenerator[T, None]]) -> Iterator[T]:
        """The items of the generator that `start` makes; it is closed when the iterator is."""
        items = start()
        try:
            while (item := self.call(lambda _: _next(items))) is not _END:
                yield item  # type: ignore[misc]  # _END is the only object that is no T
        finally:
            if not self._closed:  # closing the loop has ended its generators
                self.call(lambda _: items.aclose())

    def close(self) -> None:
        """Stop the loop and its thread. Closing twice is fine; calling afterwards is not."""
        with self._lock:
            self._closed = True
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        if loop is not None and thread is not None:
            _stop(loop, thread)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError("the client is closed")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="smile-client", daemon=True
                )
                self._thread.start()
                weakref.finalize(self, _stop, self._loop, self._thread)
            if threading.current_thread() is self._thread:
                raise RuntimeError("a sync client cannot be used from its own loop")
            return self._loop


async def _next(items: AsyncGenerator[T, None]) -> T | object:
    return await anext(items, _END)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    if loop.is_closed():
        return
    asyncio.run_coroutine_threadsafe(_end_tasks(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


async def _end_tasks() -> None:
    """Cancel what still runs on this loop and let it and its generators finish."""
    loop = asyncio.get_running_loop()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await loop.shutdown_asyncgens()
