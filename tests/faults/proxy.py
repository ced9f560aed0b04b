"""A network and an object store that misbehave on order: an HTTP proxy before an S3 server."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

SLOW_S = 0.3
SLOW_PIECES = 4
HEAD_BYTES_MAX = 1 << 16


class Mishap(enum.StrEnum):
    """What befalls a request."""

    DOWN = "down"  # the connection is reset
    SILENT = "silent"  # no answer comes, ever
    SLOW = "slow"  # the answer dribbles
    REFUSED = "500"  # nothing is done
    LOST_500 = "done, then 500"  # it is done, and the answer says that it is not
    LOST = "done, answer lost"  # it is done, and the connection is reset
    TRUNCATED = "truncated"  # half of the answer's body comes
    CORRUPTED = "corrupted"  # a byte of the answer's body is another
    CORRUPTED_SENT = "corrupted on the way in"  # a byte of what is sent, which S3 servers check


@dataclass(frozen=True, slots=True)
class _Message:
    head: bytes
    body: bytes

    def header(self, name: str) -> str:
        for line in self.head.decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name:
                return value.strip()
        return ""


@dataclass
class FaultyProxy:
    """Forwards requests to `port` of this machine, but for those that a mishap is meant for."""

    port: int
    mishap: Mishap | None = None
    at: int = 0
    lasting: bool = False
    count: int = 0
    struck: int = 0
    told: list[str] = field(default_factory=list)
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def harm(self, mishap: Mishap | None, at: int = 0, *, lasting: bool = False) -> None:
        """Count requests from now on; the mishap befalls number `at`, or all from there."""
        self.mishap, self.at, self.lasting, self.count, self.struck = mishap, at, lasting, 0, 0
        self.told.clear()

    def heal(self) -> None:
        self.mishap = None

    @property
    def address(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FaultyProxy]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        try:
            yield self
        finally:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            while (request := await _message(reader)) is not None:
                if not await self._answer(request, writer):
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            return  # the other side is gone, or this one
        finally:
            writer.transport.abort()

    async def _answer(self, request: _Message, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may go on."""
        mishap = self._due(request)
        if mishap is Mishap.DOWN:
            return False
        if mishap is Mishap.SILENT:
            await asyncio.Event().wait()
        if mishap is Mishap.CORRUPTED_SENT and request.body:
            request = _Message(request.head, _flipped(request.body))
            if hashlib.sha256(request.body).hexdigest() != request.header("x-amz-content-sha256"):
                return await _say(writer, _error(400, "XAmzContentSHA256Mismatch"))
        if mishap is Mishap.REFUSED:
            return await _say(writer, _error(500, "InternalError"))
        return await _tell(writer, await self._forwarded(request), mishap)

    def _due(self, request: _Message) -> Mishap | None:
        first = request.head.split(b"\r\n", 1)[0].decode("latin-1")
        if "/probe/" in first or "prefix=probe" in first:
            return None if self.mishap not in (Mishap.DOWN, Mishap.SILENT) else self.mishap
        self.count += 1
        self.told.append(first.rpartition(" ")[0])
        due = self.count == self.at or (self.lasting and 0 < self.at < self.count)
        if self.mishap is None or not due:
            return None
        self.struck += 1
        return self.mishap

    async def _forwarded(self, request: _Message) -> _Message:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            headless = request.head.startswith(b"HEAD ")
            answer = await _message(reader, bodiless=headless)
            assert answer is not None
            return answer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def _message(reader: asyncio.StreamReader, *, bodiless: bool = False) -> _Message | None:
    """A request or an answer, whole; None where there is no more."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if not error.partial:
            return None
        raise
    message = _Message(head, b"")
    if bodiless or head.startswith((b"HTTP/1.1 204", b"HTTP/1.1 304")):
        return message
    if message.header("transfer-encoding").lower() == "chunked":
        return _Message(head, await _chunked(reader))
    length = int(message.header("content-length") or 0)
    return _Message(head, await reader.readexactly(length))


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    """A chunked body as it is on the wire."""
    body = b""
    while True:
        size = await reader.readline()
        body += size + await reader.readexactly(int(size.split(b";")[0], 16) + 2)
        if int(size.split(b";")[0], 16) == 0:
            return body


async def _tell(writer: asyncio.StreamWriter, answer: _Message, mishap: Mishap | None) -> bool:
    """The answer, as far as the mishap lets it; whether the connection may go on."""
    told, whole = answer.head + answer.body, True
    match mishap:
        case Mishap.LOST:
            told, whole = b"", False
        case Mishap.LOST_500:
            told = _error(500, "InternalError")
        case Mishap.TRUNCATED if answer.body:
            told, whole = answer.head + answer.body[: len(answer.body) // 2], False
        case Mishap.CORRUPTED if answer.body:
            told = answer.head + _flipped(answer.body)
        case Mishap.SLOW:
            return await _dribble(writer, told)
    return await _say(writer, told) and whole


async def _say(writer: asyncio.StreamWriter, data: bytes) -> bool:
    writer.write(data)
    await writer.drain()
    return True


async def _dribble(writer: asyncio.StreamWriter, data: bytes) -> bool:
    size = len(data) // SLOW_PIECES + 1
    for start in range(0, len(data), size):
        await asyncio.sleep(SLOW_S / SLOW_PIECES)
        await _say(writer, data[start : start + size])
    return True


def _flipped(data: bytes) -> bytes:
    """One bit in the middle is another."""
    place = len(data) // 2
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def _error(status: int, code: str) -> bytes:
    body = f"<Error><Code>{code}</Code><Message>as ordered</Message></Error>".encode()
    head = (
        f"HTTP/1.1 {status} Ordered\r\ncontent-type: application/xml\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
