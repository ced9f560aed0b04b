"""Accounts over real servers: what is used is counted once, and limits hold where work is done."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pytest
from google.protobuf.message import Message
from typer.testing import CliRunner

import smile
from services.trainer.metering import Allowances
from smile.accounting import NO_LIMIT, Limit, LimitUse
from smile.cli.app import build
from smile.client.bookkeeping import Books
from smile.client.metering import Meter, MeterOptions, UsageReport
from smile.errors import InvalidArgument, NotFound, PermissionDenied, QuotaExceeded, Unavailable
from smile.rpc.channel import ServiceCredential, build_channel
from smile.savings import FULL_TRAINING_FACTOR
from smile.v1 import accounting_pb2 as pb
from smile.v1 import storage_pb2
from tests.contract.platform_world import Platform, platform_world
from tests.contract.storage_world import StorageWorld, new_id, storage_world

pytestmark = pytest.mark.asyncio
OPTIONS = MeterOptions((Limit.REQUESTS_PER_DAY,))
ROWS = [{"text": f"{label} day {n}", "label": label} for n in range(8) for label in ("a", "b")]


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def report(
    requests: int, vplm: str = "topics", day: str = "", reporter: str = "a" * 32
) -> list[Message]:
    row = pb.UsageRow(tenant="acme", vplm=vplm, counts=pb.UsageCounts(requests=requests))
    return [
        pb.ReportUsageRequest(reporter=reporter, day=day or today()),
        pb.ReportUsageRequest(rows=[row]),
    ]


async def usage(world: StorageWorld, **fields: object) -> storage_pb2.Usage:
    request = storage_pb2.GetUsageRequest(name="tenants/acme", **fields)  # type: ignore[arg-type]
    (found,) = await world.call("StorageService.GetUsage", request, world.keys["acme"])
    assert isinstance(found, storage_pb2.Usage)
    return found


async def test_reports_are_added_up_by_day() -> None:
    async with storage_world() as world:
        await world.commit("topics")
        yesterday = (date.fromisoformat(today()) - timedelta(days=1)).isoformat()
        for parts in (report(5), report(3), report(5), report(2, day=yesterday)):
            await world.call("AccountingService.ReportUsage", parts, world.service)
        await world.call(
            "AccountingService.ReportUsage", report(1, reporter="b" * 32), world.service
        )
        found = await usage(world, first_day=yesterday)
        assert [(d.day, d.counts.requests) for d in found.days] == [(yesterday, 2), (today(), 6)]
        (row,) = found.vplms
        assert (row.counts.requests, row.backbone) == (8, "backbones/toy")
        assert not (await usage(world)).days
        request = pb.ListUsageRequest(first_day=yesterday, last_day=yesterday)
        (page,) = await world.call("AccountingService.ListUsage", request, world.operator)
        assert [(t.name, t.counts.requests) for t in page.tenants] == [("tenants/acme", 2)]


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "HEADER_MISSING"),
        ([pb.ReportUsageRequest(day="2031-12-24")], "HEADER_MISSING"),
        (report(1, day="2001-01-01"), "DAYS_INVALID"),
        (report(1, day="2031-13-01"), "DAYS_INVALID"),
        (report(-1), "REQUEST_INVALID"),
        (report(1, vplm="../other"), "REQUEST_INVALID"),
        (report(1, reporter="me"), "REQUEST_INVALID"),
    ],
)
async def test_reports_that_make_no_sense_are_refused(parts: list[Message], reason: str) -> None:
    async with storage_world() as world:
        refused = await world.error("AccountingService.ReportUsage", parts, world.service)
        assert (type(refused), refused.reason) == (InvalidArgument, reason)


async def test_limits_are_set_by_the_operator_and_seen_before_they_bite() -> None:
    async with storage_world() as world:
        request = pb.SetLimitsRequest(
            name="tenants/acme",
            limits=[
                pb.LimitValue(limit=pb.LIMIT_REQUESTS_PER_DAY, value=10),
                pb.LimitValue(limit=pb.LIMIT_STORED_BYTES, value=1_000_000),
            ],
            request_id=new_id(),
        )
        refused = await world.error("AccountingService.SetLimits", request, world.keys["acme"])
        assert isinstance(refused, PermissionDenied)
        await world.call("AccountingService.SetLimits", request, world.operator)
        (answer,) = await world.call("AccountingService.ReportUsage", report(9), world.service)
        (standing,) = answer.standings
        assert (standing.tenant, standing.limits[0].allowed, standing.limits[0].used) == (
            "acme", 10, 9,
        )  # fmt: skip
        found = await usage(world)
        (warning,) = found.warnings
        assert warning.startswith("9 of 10 requests per day are used until ")
        uses = {use.limit: use for use in found.limits}
        assert uses[pb.LIMIT_STORED_BYTES].allowed == found.quota_bytes == 1_000_000
        assert uses[pb.LIMIT_VPLMS].used == 0
        request.limits.add(limit=pb.LIMIT_STORED_BYTES)
        twice = await world.error("AccountingService.SetLimits", request, world.operator)
        assert twice.reason == "LIMIT_REPEATED"
        request.limits[2].limit = pb.LIMIT_UNSPECIFIED
        unset = await world.error("AccountingService.SetLimits", request, world.operator)
        assert isinstance(unset, InvalidArgument)
        request.name = "tenants/nobody"
        del request.limits[2]
        absent = await world.error("AccountingService.SetLimits", request, world.operator)
        assert isinstance(absent, NotFound)


async def test_a_long_report_goes_in_parts_and_counts_whole() -> None:
    async with storage_world() as world:
        async with build_channel(
            world.address, credentials=ServiceCredential(world.service)
        ) as channel:
            meter = Meter(Books(channel), OPTIONS)
            for tenant in range(60):
                account = meter.account(f"t{tenant}")
                for vplm in range(40):
                    meter.tally(account, f"v{vplm}").requests += 1
                account.total.requests += 40
            await meter.report()
            await meter.report()
        request = pb.ListUsageRequest(page_size=1000)
        (page,) = await world.call("AccountingService.ListUsage", request, world.operator)
        assert [tenant.counts.requests for tenant in page.tenants] == [40] * 60
        assert page.days[0].counts.requests == 2400


async def test_a_storage_that_is_not_there_takes_nothing_and_nothing_is_lost() -> None:
    async with storage_world() as world:
        credentials = ServiceCredential(world.service)
        async with (
            build_channel("127.0.0.1:1", credentials=credentials) as nowhere,
            build_channel(world.address, credentials=credentials) as channel,
        ):
            away = Books(nowhere)
            with pytest.raises(Unavailable):
                await away.report(UsageReport("c" * 32, date.fromisoformat(today()), [], ["acme"]))
            books = Moving(away)
            meter = Meter(books, OPTIONS)
            meter.tally(meter.account("acme"), "topics").requests += 3
            await meter.report()
            books.where = Books(channel)
            await meter.report()
        assert (await usage(world, first_day=today())).days[0].counts.requests == 3


@dataclass
class Moving:
    """Accounts that are first here and then there."""

    where: Books

    async def report(self, report: UsageReport) -> Mapping[str, tuple[LimitUse, ...]]:
        return await self.where.report(report)


async def _served(platform: Platform) -> None:
    """A vPLM of acme's that answers."""
    async with platform.client("acme") as client:
        pet = smile.Houlsby(rank=2, first_layer=1)
        await client.create_vplm("topic", backbone="toy", pet=pet, labels=["a", "b"])


async def test_what_the_processor_answers_is_counted_and_limited() -> None:
    async with platform_world("acme", "rival", reporting=True) as platform:
        assert platform.processor is not None
        await _served(platform)
        async with platform.client("acme") as client, platform.operator() as operator:
            await operator.set_limits("acme", {Limit.TEXTS_PER_DAY: 5, Limit.VPLMS: NO_LIMIT})
            answered = await client.infer("topic", ["one text", "two texts"])
            await client.infer_fanout("three texts", ["topic", "absent"])
            await platform.processor.meter.report()
            tokens = sum(each.token_count for each in answered.predictions)
            found = await client.usage(days=1)
            (day,) = found.days
            assert (day.counts.requests, day.counts.texts) == (2, 3)
            assert day.counts.tokens > tokens and day.counts.compute_us > 0
            assert found.vplms[0].counts.texts == 3
            await client.infer("topic", ["four", "five"])
            refused = await _refused(client)
            assert refused.reason == "DAY_QUOTA_EXCEEDED"
            assert refused.metadata["limit_name"] == "texts_per_day"
            assert (refused.metadata["limit"], refused.metadata["value"]) == ("5", "5")
            assert refused.retry_after is not None and 0 < refused.retry_after <= 86_400
            await operator.set_limits("acme", {Limit.TEXTS_PER_DAY: None})
            await platform.processor.meter.report()
            await client.infer("topic", ["six"])
            everybody = await operator.usage_of_all(days=2)
            assert [each.name for each in everybody.tenants] == ["tenants/acme"]


async def _refused(client: smile.AsyncClient) -> QuotaExceeded:
    with pytest.raises(QuotaExceeded) as refused:
        await client.infer("topic", ["one too many"])
    return refused.value


async def test_no_request_passes_a_limit_by_its_own_size() -> None:
    """Not even the first of all: the processor asks before it serves a large one."""
    async with platform_world("acme", reporting=True) as platform:
        assert platform.processor is not None
        await _served(platform)
        async with platform.client("acme") as client, platform.operator() as operator:
            await operator.set_limits("acme", {Limit.TEXTS_PER_DAY: 150})
            with pytest.raises(QuotaExceeded) as refused:
                await client.infer("topic", ["a text"] * 151)
            told = refused.value.metadata
            assert (told["limit"], told["value"], told["asked"]) == ("150", "0", "151")
            assert refused.value.retry_after is None  # no day has so much
            assert "and has used 0 and asks for 151" in refused.value.message
            await client.infer("topic", ["a text"] * 149)
            for asked in (["a text"] * 2, ["a text"] * 120):
                with pytest.raises(QuotaExceeded) as refused:
                    await client.infer("topic", asked)
                assert refused.value.metadata["value"] == "149"
                assert refused.value.retry_after is not None
            with pytest.raises(QuotaExceeded):
                await client.infer_fanout("a text", ["topic", "topic"])
            await client.infer("topic", ["the last"])
            await platform.processor.meter.report()
            assert (await client.usage(days=1)).days[0].counts.texts == 150


async def test_a_large_request_is_served_where_nobody_says_how_its_tenant_stands() -> None:
    async with platform_world("acme", reporting=True) as platform:
        assert platform.processor is not None
        await _served(platform)
        async with platform.client("acme") as client:
            await client.infer("topic", "now the module is there")
            platform.store.break_down()
            assert len((await client.infer("topic", ["a text"] * 200)).predictions) == 200


async def test_answers_go_on_while_storage_cannot_be_told() -> None:
    async with platform_world("acme", reporting=True) as platform:
        assert platform.processor is not None
        await _served(platform)
        async with platform.client("acme") as client:
            await client.infer("topic", "before")
            platform.store.break_down()
            for _ in range(3):
                await client.infer("topic", "meanwhile")
                await platform.processor.meter.report()
            platform.store.recover()
            await platform.processor.meter.report()
            assert (await client.usage(days=1)).days[0].counts.requests == 4


async def test_training_is_counted_and_charged_by_the_hour() -> None:
    async with platform_world("acme", reporting=True) as platform:
        assert platform.training is not None
        await _served(platform)
        async with platform.client("acme") as client, platform.operator() as operator:
            await client.upload_dataset("news", ROWS)
            async with platform.worker():
                job = await client.train("topic", "news", epochs=1)
                await client.wait(job.name)
            await platform.training.meter.report()
            counts = (await client.usage(days=1)).days[0].counts
            assert counts.jobs == 1 and counts.training_us > 0
            assert abs(counts.charged_us - 2 * counts.training_us) <= 2
            await operator.set_limits("acme", {Limit.TRAINING_SECONDS_PER_DAY: 0})
            assert platform.jobs is not None
            platform.jobs._allowances = Allowances(platform.books)  # 15 s later
            with pytest.raises(QuotaExceeded) as refused:
                await client.train("topic", "news")
            assert refused.value.metadata["limit_name"] == "training_seconds_per_day"
            waits = await client.train("topic", "news", when="off_peak")
            assert waits.state is smile.JobState.QUEUED


async def test_the_command_line_shows_days_limits_and_what_was_saved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with platform_world("acme", reporting=True) as platform:
        assert platform.processor is not None
        await _served(platform)
        async with platform.client("acme") as client:
            await client.infer("topic", ["one", "two"])
        await platform.processor.meter.report()
        monkeypatch.setenv("SMILE_ENDPOINTS", platform.endpoints)

        def run(key: str, *arguments: str) -> str:
            result = CliRunner().invoke(build(), [*arguments], env={"SMILE_API_KEY": key})
            assert result.exit_code == 0, result.stderr
            return result.stdout

        async def told(key: str, *arguments: str) -> str:
            return await asyncio.to_thread(run, key, *arguments)

        acme, operator = platform.keys["acme"], platform.operator_key
        quota = ("tenants", "set-quota", "acme", "--requests-per-day", "2", "--vplms", "none")
        assert "requests_per_day" in await told(operator, *quota)
        shown = await told(acme, "usage", "--days", "3")
        assert today() in shown and "█" in shown and "50.0 %" in shown
        assert re.search(r"vplm, last 3 days .*\n.*\n *topic +1 +2 ", shown)
        plain = await told(acme, "usage")
        assert len(re.findall(r"^\d{4}-\d\d-\d\d ", plain, re.MULTILINE)) == 7
        assert re.search(r"vplm, last 7 days .*\n.*\n *topic +1 +2 ", plain)
        stored = await told(acme, "usage", "--days", "0")
        assert "topic" in stored and "requests " not in stored
        found = json.loads(await told(acme, "usage", "--days", "30", "--output", "json"))
        assert len(found["days"]) == 30
        assert len(json.loads(await told(acme, "usage", "--output", "json"))["days"]) == 7
        assert found["days"][-1]["counts"]["texts"] == 2
        saved = found["savings"]
        assert saved["full_model_bytes"] == found["vplms"][0]["full_model_bytes"]
        assert saved["model_bytes"] < saved["full_model_bytes"]
        assert saved["assumptions"]["full_training_factor"] == FULL_TRAINING_FACTOR
        everybody = json.loads(await told(operator, "usage", "--all-tenants", "-o", "json"))
        assert everybody["tenants"][0]["counts"]["requests"] == 1
        limits = json.loads(await told(operator, "tenants", "quota", "acme", "-o", "json"))
        allowed = {use["limit"]: use["allowed"] for use in limits["limits"]}
        assert allowed["requests_per_day"] == 2 and "vplms" not in allowed
