"""What overlaps with what, told by traces: pipelined and sequential execution of the same code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from services.processor.engine import Engine
from smile.model.toy import write_toy_backbone
from smile.resources import Classification
from tests.contract.processor_world import World, processor_world

pytestmark = pytest.mark.asyncio

COMPUTE_S = 0.05
TEXT = "the star of the team"
EARLIER_STAGES = ("resolve", "tokenise", "load", "prepare")


@dataclass(frozen=True)
class Slice:
    """One span of a trace, in microseconds."""

    lane: str
    started: float
    ended: float
    facts: dict[str, int]

    def overlaps(self, other: Slice) -> bool:
        return self.started < other.ended and other.started < self.ended


@pytest.fixture
def slow_device(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = Engine.compute

    def slow(self: Engine, prepared: Any) -> Any:
        time.sleep(COMPUTE_S)
        return compute(self, prepared)

    monkeypatch.setattr(Engine, "compute", slow)


async def ask(world: World, vplms: int, rounds: int) -> None:
    """Ask cold vPLMs, each once a round, all at the same time."""
    for number in range(vplms):
        world.add("acme", f"v{number}", seed=number)
    for _ in range(rounds):
        results = await asyncio.gather(
            *(world.infer("acme", f"tenants/acme/vplms/v{n}", [TEXT]) for n in range(vplms))
        )
        for number, result in enumerate(results):
            assert result.version == f"tenants/acme/vplms/v{number}/versions/1"
            answer = result.predictions[0].result
            assert isinstance(answer, Classification)
            assert answer.score == pytest.approx(
                float(world.expected(result.version, TEXT).max()), abs=1e-5
            )


def events(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return found


def spans(path: Path) -> list[Slice]:
    return [
        Slice(e["name"], e["ts"], e["ts"] + e["dur"], e["args"])
        for e in events(path)
        if e["ph"] == "X"
    ]


def of(lane: str, among: list[Slice]) -> list[Slice]:
    return [span for span in among if span.lane == lane]


async def traced(tmp_path: Path, ask: Callable[[World], Any], **changes: Any) -> Path:
    path = tmp_path / "trace.json"
    backbone = write_toy_backbone(tmp_path / "toy")
    limits = {"batch_texts_max": 8}
    async with processor_world(backbone, trace=path, **limits, **changes) as world:
        await ask(world)
    return path


@pytest.mark.usefixtures("slow_device")
async def test_sequential_micro_batches_overlap_in_nothing(tmp_path: Path) -> None:
    path = await traced(tmp_path, lambda world: ask(world, 20, 2), execution="sequential")
    found = spans(path)
    computes = of("compute", found)
    assert sum(span.facts["texts"] for span in computes) == 40
    assert max(span.facts["texts"] for span in computes) == 8, "batches are as large as otherwise"
    assert max(span.facts["vplms"] for span in computes) == 8
    assert len(of("load", found)) == 20
    loads = of("load", found)
    assert any(one.overlaps(other) for one in loads for other in loads if one is not other), (
        "what one micro-batch needs loads at the same time"
    )
    for compute in computes:
        for span in found:
            if span.lane in EARLIER_STAGES or (span.lane == "compute" and span is not compute):
                assert not span.overlaps(compute), (span, compute)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.usefixtures("slow_device")
async def test_pipelined_loads_and_preparing_overlap_with_compute(
    tmp_path: Path, streams: int
) -> None:
    async def twice(world: World) -> None:
        world.add("acme", "warm", seed=1)
        warm = "tenants/acme/vplms/warm"
        await world.infer("acme", warm, [TEXT])
        busy = asyncio.create_task(world.infer("acme", warm, [TEXT] * 64))
        await asyncio.sleep(COMPUTE_S)
        await ask(world, 8, 1)
        await busy

    path = await traced(tmp_path, twice, streams=streams)
    found = spans(path)
    for lane in ("load", "prepare", "tokenise"):
        assert any(
            span.overlaps(compute) for span in of(lane, found) for compute in of("compute", found)
        ), lane
    computes = sorted(of("compute", found), key=lambda span: span.started)
    for later in computes:
        running = [one for one in computes if one.started <= later.started < one.ended]
        assert len(running) <= streams, "no more at a time than there are streams"
    assert any(one.overlaps(other) for one, other in pairwise(computes)) == (streams > 1)


async def test_every_load_points_to_the_batch_that_used_it(tmp_path: Path) -> None:
    path = await traced(tmp_path, lambda world: ask(world, 5, 2))
    arrows = {phase: [e for e in events(path) if e["ph"] == phase] for phase in "sf"}
    assert {e["id"] for e in arrows["s"]} == {e["id"] for e in arrows["f"]}
    assert len(arrows["s"]) == len(arrows["f"]) == 5
    assert {span.lane for span in spans(path)} == {
        "admit",
        "resolve",
        "tokenise",
        "load",
        "copy",
        "prepare",
        "compute",
        "answer",
    }


async def test_a_trace_holds_numbers_only(tmp_path: Path) -> None:
    path = await traced(tmp_path, lambda world: ask(world, 3, 1))
    for event in events(path):
        if event["ph"] == "X":
            assert all(isinstance(value, int) for value in event["args"].values())
    text = path.read_text()
    for secret in ("acme", "v1", "star", "team"):
        assert secret not in text


async def test_sigusr1_writes_the_trace_so_far(tmp_path: Path) -> None:
    path = tmp_path / "now.json"
    async with processor_world(write_toy_backbone(tmp_path / "toy"), trace=path) as world:
        await ask(world, 2, 1)
        assert not path.exists()
        os.kill(os.getpid(), signal.SIGUSR1)
        async with asyncio.timeout(10):
            while not path.exists():  # noqa: ASYNC110 -- a file has no event
                await asyncio.sleep(0.01)
        assert of("compute", spans(path))
