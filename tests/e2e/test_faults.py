"""Processes killed in mid-flight: what was accepted is done, what can goes on, all is told."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

import smile
from smile import JobState
from smile.embedded import ChildPhase
from tests.e2e.platforms import LABELS, Platform, rows, until

pytestmark = pytest.mark.e2e

LONG = 80  # epochs that keep the toy backbone busy for seconds


def made(client: smile.Client, vplm: str = "mood") -> smile.Vplm:
    client.upload_dataset(f"{vplm}-texts", rows())
    return client.create_vplm(vplm, backbone="toy", pet=smile.Pfeiffer(8), labels=LABELS)


def started(client: smile.Client, vplm: str = "mood", epochs: int = LONG) -> smile.TrainingJob:
    """A job that is in the middle of its training."""
    job = client.train(vplm, f"{vplm}-texts", epochs=epochs, batch_size=8)
    until(lambda: client.job(job).progress.step > 3 or client.job(job).state.done, "first steps")
    assert client.job(job).state is JobState.RUNNING, client.job(job)
    return job


def ready(platform: Platform) -> None:
    until(lambda: platform.status()[0] == 0, "every service ready")


def answer(client: smile.Client, vplm: str) -> smile.InferResult:
    """A channel that saw its server die tries to connect again within 5 s."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return client.infer(vplm, "a good day")
        except smile.Unavailable:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@contextmanager
def asking(client: smile.Client, vplm: str) -> Iterator[list[smile.InferResult]]:
    """Inference going on all the time; whatever goes wrong with it is raised at the end."""
    answers: list[smile.InferResult] = []
    faults: list[smile.SmileError] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                answers.append(client.infer(vplm, "a good day", timeout=10))
            except smile.SmileError as error:
                faults.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        until(lambda: len(answers) > 3, "first answers")
        yield answers
    finally:
        stop.set()
        thread.join()
    assert faults == []


def test_processor_killed_is_told_and_comes_back(fragile: Platform) -> None:
    with fragile.client() as client:
        made(client)
        before = client.infer("mood", "a good day")
        restarts = fragile.child("processor").restarts
        fragile.kill("processor")
        until(lambda: fragile.child("processor").phase is ChildPhase.CRASHED, "the crash told")
        code, services = fragile.status()
        assert code == 8
        assert services["processor"]["last_exit"] == "signal SIGKILL"
        assert services["storage"]["ready"]
        ready(fragile)
        assert fragile.child("processor").restarts == restarts + 1
        after = answer(client, "mood")
        assert after.digest == before.digest
        assert after.predictions == before.predictions


def test_worker_killed_in_mid_job_and_the_job_ends_once(fragile: Platform) -> None:
    with fragile.client() as client:
        made(client)
        job = started(client)
        for worker in fragile.workers():
            worker.send_signal(signal.SIGKILL)
        done = client.wait(job, timeout=120)
        assert done.state is JobState.SUCCEEDED
        assert done.attempt == 2
        assert [version.number for version in client.versions("mood")] == [2, 1]
        assert client.version("mood").number == 2


def test_trainer_killed_in_mid_job_and_the_job_ends_once(fragile: Platform) -> None:
    with fragile.client() as client:
        made(client)
        job = started(client)
        fragile.kill("trainer")
        done = client.wait(job, timeout=120)
        assert done.state is JobState.SUCCEEDED
        assert [version.number for version in client.versions("mood")] == [2, 1]
        ready(fragile)


def test_redis_killed_in_mid_job(fragile: Platform) -> None:
    """Inference does not notice; the job ends once."""
    with fragile.client() as client:
        made(client)
        made(client, "asked")
        job = started(client)
        with asking(client, "asked") as answers:
            fragile.kill("redis")
            until(lambda: fragile.child("redis").phase is ChildPhase.CRASHED, "the crash told")
            count = len(answers)
            ready(fragile)
            assert len(answers) > count
        done = client.wait(job, timeout=120)
        assert done.state is JobState.SUCCEEDED
        assert [version.number for version in client.versions("mood")] == [2, 1]


def test_storage_away_and_cached_models_go_on_answering(fragile: Platform) -> None:
    """Stopped rather than killed, so that it stays away for as long as we look."""
    with fragile.client() as client:
        made(client)
        client.infer("mood", "a good day")
        pid = fragile.child("storage").pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            deadline = time.monotonic() + 8  # longer than aliases and keys are cached
            while time.monotonic() < deadline:
                assert client.infer("mood", "a good day", timeout=10).predictions
                time.sleep(0.2)
        finally:
            os.kill(pid, signal.SIGCONT)
        ready(fragile)


def test_storage_killed_in_mid_flight(fragile: Platform) -> None:
    with fragile.client() as client:
        made(client)
        client.infer("mood", "a good day")
        with asking(client, "mood"):
            fragile.kill("storage")
            until(lambda: fragile.child("storage").phase is ChildPhase.CRASHED, "the crash told")
            ready(fragile)
        assert client.vplm("mood").latest_version == 1
