"""Sweeps over the wire: SDK, server, queue, worker and storage, and the command line."""

from __future__ import annotations

import asyncio
import json

import pytest
from typer.testing import CliRunner

import smile
from smile.cli.app import build
from smile.errors import InvalidArgument, InvalidSpec
from smile.resources import JobState
from tests.contract.test_trainer import QUICK, ready

pytestmark = pytest.mark.asyncio
TRIALS = smile.grid(learning_rate=(1e-9, 1e-2), seed=(0, 1))


async def test_the_best_trial_is_served_and_all_are_there() -> None:
    async with ready() as (_, client):
        parent = await client.sweep("topics", "news", TRIALS, **QUICK)
        events = [event async for event in client.watch(parent)]
        ended = await client.job(parent)
        assert events[-1].job == ended and ended.state is JobState.SUCCEEDED
        assert ended.sweep is not None and ended.sweep.metric == "validation_accuracy"
        values = [outcome.value or 0.0 for outcome in ended.sweep.outcomes]
        best = values.index(max(values))
        assert ended.sweep.best == best + 1
        vplm = await client.vplm("topics")
        assert ended.version == f"{vplm.name}/versions/{vplm.aliases['serving']}"
        assert ended.version == ended.sweep.outcomes[best].version
        trials = [job async for job in client.jobs() if job.parent_job == parent.name]
        assert {job.name for job in trials} == {one.job for one in ended.sweep.outcomes}
        assert len({job.version for job in trials}) == len(TRIALS)
        told = [(job.hyper_parameters.learning_rate, job.hyper_parameters.seed) for job in trials]
        assert sorted(told) == [(1e-9, 0), (1e-9, 1), (1e-2, 0), (1e-2, 1)]


async def test_a_cancelled_sweep_ends_its_trials() -> None:
    async with ready(worker=False) as (_, client):
        parent = await client.sweep("topics", "news", TRIALS, concurrency_max=3, **QUICK)
        begun = 0
        async for event in client.watch(parent):
            if event.job is not None and event.job.sweep is not None and not begun:
                begun = len(event.job.sweep.outcomes)
                if begun:
                    await client.cancel(parent)
        assert begun == 3
        assert (await client.job(parent)).state is JobState.CANCELLED
        states = {job.state async for job in client.jobs()}
        assert states == {JobState.CANCELLED}


async def test_what_a_trial_may_not_set() -> None:
    async with ready(worker=False) as (_, client):
        with pytest.raises(InvalidSpec, match="which 'rank' is not"):
            await client.sweep("topics", "news", [{"rank": 4}])
        with pytest.raises(InvalidArgument, match=r"trials\[1\].learning_rate"):
            await client.sweep("topics", "news", smile.grid(learning_rate=(1e-3, 11.0)))
        with pytest.raises(InvalidSpec, match="epochs must be above 0"):
            await client.sweep("topics", "news", [{"epochs": 0}])


async def test_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ready() as (platform, _):
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setenv("SMILE_API_KEY", platform.keys["acme"])
        monkeypatch.setenv("SMILE_ENDPOINTS", platform.endpoints)

        async def run(*arguments: str) -> tuple[int, str, str]:
            result = await asyncio.to_thread(CliRunner().invoke, build(), list(arguments))
            return result.exit_code, result.stdout, result.stderr

        asked = ("sweep", "topics", "--dataset", "news", "--epochs", "2", "--batch-size", "16")
        code, shown, told = await run(*asked, "--try", "learning_rate=1e-9,1e-2", "--try", "seed=3")
        assert code == 0, told
        tried = [line for line in shown.splitlines() if "learning_rate " in line]
        assert [line.split()[0] for line in tried].count("best") == 1
        assert any("learning_rate 0.01" in line for line in tried)
        assert not any("seed" in line for line in tried), "what does not differ is not told"
        code, shown, _ = await run("jobs", "-o", "json")
        jobs = json.loads(shown)["jobs"]
        assert [bool(job["parent_job"]) for job in jobs].count(True) == 2
        for wrong in ("rank=3", "learning_rate=fast", "class_weights=1"):
            code, _, told = await run(*asked, "--try", wrong)
            assert code == 2 and "--try" in told
