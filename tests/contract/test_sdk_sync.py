"""The sync face over real servers: the same answers, from a thread that blocks."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

import smile
from tests.contract.sdk_world import STEPS, World, world_in_thread


@pytest.fixture
def platform() -> Iterator[World]:
    with world_in_thread("acme") as made:
        yield made


@pytest.fixture
def client(platform: World) -> Iterator[smile.Client]:
    with smile.Client(platform.keys["acme"], endpoints=platform.endpoints) as made:
        yield made


def test_the_journey(client: smile.Client, platform: World) -> None:
    assert client.tenant == "acme"
    client.create_vplm("topic", backbone="toy", pet=smile.LoRA(rank=2), labels=["a", "b"])
    assert [vplm.name for vplm in client.vplms(page_size=1)] == ["tenants/acme/vplms/topic"]
    sent: list[int] = []
    client.upload_dataset(
        "rows", [{"text": "x", "label": "a"}], on_progress=lambda done, _: sent.append(done)
    )
    assert sent == [client.dataset("rows").size_bytes]
    events: list[smile.TrainingEvent] = []
    job = client.wait(client.train("topic", "rows", epochs=2), on_event=events.append)
    assert job.state is smile.JobState.SUCCEEDED and len(events) == 2 * STEPS + 2
    assert [event.resume_token for event in client.watch(job)] == [e.resume_token for e in events]
    assert len(client.infer("topic", ["a", "b"]).predictions) == 2
    assert len(list(client.infer_many("topic", ("x" for _ in range(50)), batch_size=7))) == 50


def test_callbacks_run_in_the_callers_thread_and_may_use_the_client(
    client: smile.Client, platform: World
) -> None:
    threads: list[threading.Thread] = []
    states: list[smile.JobState] = []
    job = client.train("topic", "rows")

    def on_event(event: smile.TrainingEvent) -> None:
        threads.append(threading.current_thread())
        states.append(client.job(job).state)

    client.wait(job, on_event=on_event)
    assert set(threads) == {threading.current_thread()}
    assert states[-1] is smile.JobState.SUCCEEDED


def test_errors_of_callbacks_and_of_calls_reach_the_caller(
    client: smile.Client, platform: World
) -> None:
    job = client.train("topic", "rows")

    def on_event(event: smile.TrainingEvent) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        client.wait(job, on_event=on_event)
    with pytest.raises(smile.NotFound, match="trainingJobs/gone"):
        client.wait("gone")
    with pytest.raises(smile.NotFound):
        next(client.watch("gone"))
    assert client.job(job).name == job.name


def test_an_iterator_left_early_is_closed(client: smile.Client, platform: World) -> None:
    platform.processor.answer_delay_s = 0.01
    stream = client.infer_many("topic", iter(["x"] * 1000), batch_size=1, concurrency=2)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(platform.processor.batches) < 10


def test_an_interrupt_cancels_the_call_and_leaves_the_client_usable(
    client: smile.Client, platform: World
) -> None:
    platform.trainer.hold = True
    job = client.train("topic", "rows")
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.3, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        client.wait(job)
    timer.join()
    assert client.cancel(job).state is smile.JobState.CANCELLED


def test_threads_share_a_client(client: smile.Client, platform: World) -> None:
    failures: list[BaseException] = []

    def ask(number: int) -> None:
        try:
            for _ in range(5):
                result = client.infer("topic", "x" * number).predictions[0].result
                assert isinstance(result, smile.Classification) and result.label == str(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_closed_client_says_so_and_stops_its_thread(platform: World) -> None:
    before = threading.active_count()
    client = smile.Client(platform.keys["acme"], endpoints=platform.endpoints)
    assert threading.active_count() == before
    client.backbones()
    stream = client.vplms()
    assert list(stream) == []
    client.close()
    client.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="closed"):
        client.backbones()


def test_the_key_and_the_endpoints_come_from_the_environment(
    platform: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SMILE_API_KEY", platform.keys["acme"])
    monkeypatch.setenv("SMILE_ENDPOINTS", platform.endpoints)
    with smile.Client() as client:
        assert [b.name for b in client.backbones()] == ["backbones/toy"]
