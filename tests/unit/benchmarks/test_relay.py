"""The relay holds back answers, all by the same time, and changes none."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

from benchmarks.harness.relay import HOST, relayed

DELAY_S = 0.3


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(100_000):
            writer.write(data)
    finally:
        await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def _asked(address: str, question: bytes) -> tuple[bytes, float]:
    """The answer, and the seconds it took."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    started = time.perf_counter()
    writer.write(question)
    answer = await reader.readexactly(len(question))
    took_s = time.perf_counter() - started
    await _closed(writer)
    return answer, took_s


async def _through(questions: list[bytes]) -> list[tuple[bytes, float]]:
    echoes: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        echoes.add(asyncio.create_task(_echo(reader, writer)))

    server = await asyncio.start_server(connected, HOST, 0)
    there = f"{HOST}:{server.sockets[0].getsockname()[1]}"

    async def ask() -> list[tuple[bytes, float]]:
        with relayed(there, DELAY_S) as address:
            return await asyncio.gather(*(_asked(address, question) for question in questions))

    try:
        return await ask()
    finally:
        server.close()
        if echoes:
            await asyncio.wait(echoes)


def test_answers_come_as_they_are_and_so_much_later() -> None:
    questions = [b"one", os.urandom(3_000_000), b"three"]
    found = asyncio.run(_through(questions))
    assert [answer for answer, _ in found] == questions
    assert all(took_s >= DELAY_S for _, took_s in found)


def test_many_at_a_time_wait_once() -> None:
    started = time.perf_counter()
    asyncio.run(_through([b"question"] * 20))
    assert time.perf_counter() - started < 20 * DELAY_S


def test_a_service_that_is_away_ends_the_connection() -> None:
    async def ask(address: str) -> bytes:
        host, _, port = address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        answer = await reader.read()
        await _closed(writer)
        return answer

    with relayed(f"{HOST}:1", DELAY_S) as address:
        assert asyncio.run(ask(address)) == b""
