"""Metrics over HTTP and in `GetStats`, after real calls."""

from __future__ import annotations

import asyncio
import socket
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from smile import errors
from smile.model.toy import write_toy_backbone
from tests.contract.processor_world import PETS, World, processor_world

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "a good day for the team"
NAMES = {
    *("requests", "texts", "request_seconds", "queue_seconds", "load_wait_seconds", "batches"),
    *("batch_texts", "batch_tokens", "batch_vplms", "prepare_seconds", "compute_seconds"),
    *("prediction_ratio", "module_hits", "module_misses", "module_loads", "module_loaded_bytes"),
    *("module_evictions", "modules", "modules_bytes", "modules_bytes_max", "module_unloads"),
    *("load_seconds", "admission_refusals", "queue_texts", "queue_texts_max", "rented"),
    *("padding_share", "loop_lag_seconds", "feed_live", "lookups", "ngrams", "ngrams_found"),
    *("ngram_rows_computed", "ngram_rows", "ngram_rows_bytes"),
}


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Scraped:
    """A page of metrics, read by Prometheus' own parser."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.families = {each.name: each for each in text_string_to_metric_families(text)}

    def value(self, name: str, **labels: str) -> float:
        return sum(
            sample.value
            for family in self.families.values()
            for sample in family.samples
            if sample.name == f"smile_processor_{name}" and labels.items() <= sample.labels.items()
        )


class Scraper:
    """A processor and where its metrics are."""

    def __init__(self, world: World, port: int) -> None:
        self.world = world
        self.port = port

    async def __call__(self) -> Scraped:
        def read() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as response:
                found: str = response.read().decode()
                return found

        return Scraped(await asyncio.to_thread(read))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scrape(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scraper]:
    backbone: Path = write_toy_backbone(tmp_path_factory.mktemp("toy"))
    port = free_port()
    async with processor_world(backbone, metrics_port=port) as world:
        yield Scraper(world, port)


async def test_every_name_is_there_from_the_start(scrape: Scraper) -> None:
    page = await scrape()
    assert set(page.families) == {f"smile_processor_{name}" for name in NAMES}
    assert all(family.documentation for family in page.families.values())


async def test_values_after_real_calls(scrape: Scraper) -> None:
    world, before = scrape.world, await scrape()
    for index, pet in enumerate(PETS):
        world.add("acme", f"v{index}", pet=pet, seed=index)
    names = [f"tenants/acme/vplms/v{index}" for index in range(len(PETS))]
    for name in names:
        await world.infer("acme", name, [TEXT, TEXT])
    await world.infer_fanout("acme", TEXT, names)
    async with world.client("acme") as client:
        await client.rent("v0", weight=5, wait=True)
        await client.infer("v0", TEXT)
        with pytest.raises(errors.NotFound):
            await client.infer("absent", TEXT)
        with pytest.raises(errors.TextEmpty):
            await client.infer("v0", " ")
        stats = await client.stats()
    async with asyncio.timeout(10):  # the event loop's lag is looked at every so often
        while not (page := await scrape()).value("loop_lag_seconds_count"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)

    def more(name: str, **labels: str) -> float:
        return page.value(name, **labels) - before.value(name, **labels)

    asked = len(PETS) + 2
    assert more("requests_total", outcome="OK") == asked
    assert more("requests_total", outcome="NOT_FOUND") == 1
    assert more("request_seconds_count", tenant_class="heavy") == 1
    assert more("request_seconds_count", tenant_class="unrented") == asked - 1
    assert more("queue_seconds_count") == asked
    assert more("module_loads_total", tier="host") == len(PETS)
    assert more("module_misses_total", tier="host") == len(PETS)
    assert more("module_hits_total", tier="host") == len(PETS) + 1
    assert more("module_misses_total", tier="disk") == len(PETS)
    assert more("load_seconds_count") == len(PETS)
    assert more("load_wait_seconds_count") == len(PETS)
    assert page.value("modules", tier="host") == len(PETS)
    assert (
        0
        < page.value("modules_bytes", tier="device")
        <= page.value("modules_bytes_max", tier="device")
    )
    batches = more("batches_total")
    assert batches >= len(PETS) + 2
    assert more("batch_texts_count") == more("compute_seconds_count") == batches
    assert more("batch_texts_sum") == 3 * len(PETS) + 1
    assert more("batch_vplms_sum") >= 2 * len(PETS) + 1
    assert more("compute_seconds_sum") > 0
    assert page.value("padding_share") == 0, "nothing is padded"
    assert page.value("rented") == 1
    assert page.value("loop_lag_seconds_count") > 0
    assert (stats.requests_by_outcome["OK"], stats.processors_rented) == (
        page.value("requests_total", outcome="OK"),
        1,
    )
    assert stats.padding_share == 0 and stats.device_modules == page.value("modules", tier="device")
    assert {each.tenant_class for each in stats.latencies} == {"heavy", "unrented"}
    assert sum(stats.batches_by_close.values()) == stats.batches_total


async def test_refusals_are_told_by_reason(scrape: Scraper) -> None:
    world = scrape.world
    world.add("acme", "limited", seed=40)
    async with world.client("acme") as client:
        await client.rent("limited", texts_per_s=0.001, burst_texts=1, wait=True)
        await client.infer("limited", TEXT)
        with pytest.raises(errors.Overloaded):
            await client.infer("limited", TEXT)
    assert (await scrape()).value("requests_total", outcome="RATE_LIMITED") == 1


async def test_no_tenant_is_named(scrape: Scraper) -> None:
    world = scrape.world
    world.add("very-secret-tenant", "very-secret-vplm", seed=50)
    await world.infer(
        "very-secret-tenant", "tenants/very-secret-tenant/vplms/very-secret-vplm", [TEXT]
    )
    text = (await scrape()).text
    assert "secret" not in text and "acme" not in text and "vplms/" not in text


async def test_no_port_is_open_by_default(tmp_path: Path) -> None:
    async with processor_world(write_toy_backbone(tmp_path / "toy")) as world:
        assert world.processor.metrics_at[1] == 0
        world.add("acme", "v", seed=1)
        await world.infer("acme", "tenants/acme/vplms/v", [TEXT])
        assert world.stats.requests_by_outcome == {"OK": 1}
