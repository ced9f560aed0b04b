"""A tenant that asks far more than there is, from a process of its own.

    SMILE_API_KEY=... SMILE_ENDPOINTS=... python -m benchmarks.harness.flood VPLM REQUESTS_PER_S
        TEXTS SECONDS

It stands for someone on another machine, so it leaves this one's processors to others first
(`nice`). Its last line is one JSON object: what it offered and what came of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter

from benchmarks.harness import workload
from benchmarks.harness.latency import HEAD_START_S
from smile import AsyncClient
from smile.errors import SmileError

NICENESS = 19


async def flood(vplm: str, requests_per_s: float, texts: int, seconds: float) -> dict[str, object]:
    """Ask on a Poisson schedule for `seconds`; those without an answer then are given up."""
    schedule = workload.poisson(requests_per_s, seconds, seed=31)
    corpus = workload.texts(texts * 16)
    outcomes: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    start = loop.time() + HEAD_START_S

    async with AsyncClient() as client:

        async def ask(number: int) -> None:
            first = number % 16 * texts
            try:
                await client.infer(
                    vplm, corpus[first : first + texts], truncate=True, patient=False
                )
            except SmileError as error:
                outcomes[error.reason] += 1
            else:
                outcomes["answered"] += 1

        tasks = set()
        for number, offset in enumerate(schedule):
            await asyncio.sleep(max(0.0, start + float(offset) - loop.time()))
            task = asyncio.create_task(ask(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        took = loop.time() - start
        waiting = len(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "requests": len(schedule),
        "texts_per_s": len(schedule) * texts / max(took, seconds),
        "given_up": waiting,
        "outcomes": dict(outcomes),
    }


if __name__ == "__main__":
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    name, rate, count, duration = sys.argv[1:]
    found = asyncio.run(flood(name, float(rate), int(count), float(duration)))
    sys.stdout.write(json.dumps(found) + "\n")
