"""A service further away: a relay in front of it whose answers come so much later.

For stores on the same machine, which answer at once, where an object store takes milliseconds. Each
chunk of an answer is held back by the same time and none waits for another, so throughput stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from smile.errors import Unavailable

HOST = "127.0.0.1"
CHUNK_BYTES = 256 * 1024
CHUNKS_MAX = 256  # held back at a time, per connection
START_S_MAX = 10.0


@contextmanager
def relayed(address: str, delay_s: float) -> Iterator[str]:
    """The address of a relay to `address` (`host:port`); it works in a thread, until left.

    Raises:
        Unavailable: it did not start in time.
    """
    relay = _Relay(address, delay_s)
    thread = threading.Thread(target=lambda: asyncio.run(relay.run()), name="relay", daemon=True)
    thread.start()
    try:
        yield relay.started.result(START_S_MAX)
    except TimeoutError as error:
        raise Unavailable(f"the relay to {address} did not start") from error
    finally:
        relay.stop()
        thread.join(START_S_MAX)


class _Relay:
    """Belongs to the event loop of `run`; `started` and `stop` are for any thread."""

    def __init__(self, address: str, delay_s: float) -> None:
        host, _, port = address.rpartition(":")
        self._target = host, int(port)
        self._delay_s = delay_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self.started: Future[str] = Future()

    async def run(self) -> None:
        """Relay until `stop`."""
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._connected, HOST, 0)
        self.started.set_result(f"{HOST}:{server.sockets[0].getsockname()[1]}")
        await self._ended.wait()
        server.close()
        connections = list(self._connections)
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def stop(self) -> None:
        """End every connection."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ended.set)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._relay(reader, writer))
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        task.add_done_callback(lambda _: writer.close())  # also where it was never begun

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Both directions; the end of either is the end of both."""
        there: asyncio.StreamWriter | None = None
        ways: set[asyncio.Task[None]] = set()
        try:
            answers, there = await asyncio.open_connection(*self._target)
            ways = {
                asyncio.create_task(_pass_on(reader, there, 0.0)),
                asyncio.create_task(_pass_on(answers, writer, self._delay_s)),
            }
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:  # nobody there, which the caller sees as the end of its connection
            return
        finally:  # both ends are closed before anything is awaited: `run` may cancel the rest
            for way in ways:
                way.cancel()
            ends = [end for end in (writer, there) if end is not None]
            for end in ends:
                end.close()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in ends:
                with contextlib.suppress(OSError):  # the other side was faster
                    await end.wait_closed()


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    """Everything from one to the other, each chunk `delay_s` after it came."""
    loop = asyncio.get_running_loop()
    held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(CHUNKS_MAX)

    async def let_go() -> None:
        while True:
            due, data = await held.get()
            if not data:
                return
            if (wait_s := due - loop.time()) > 0:
                await asyncio.sleep(wait_s)
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as group:
        group.create_task(let_go())
        data = b"first"
        while data:
            data = await reader.read(CHUNK_BYTES)
            await held.put((loop.time() + delay_s, data))
