"""A platform in this process: real storage and creator, scripted trainer and processor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from google.protobuf import empty_pb2

from services.creator.catalogue import Catalogue
from services.creator.servicer import FULL_NAME, CreatorServicer
from services.creator.vplms import Stored
from services.storage.servicer.assembly import StorageOptions, assemble
from smile import codec
from smile.client.adapter_records import AdapterRecords
from smile.client.client import AsyncClient
from smile.client.loop import LoopThread
from smile.client.records import VplmRecords
from smile.client.version_reader import VersionReader
from smile.errors import InvalidArgument, NotFound, Overloaded, SmileError, Unavailable
from smile.model.sources import parse_sources
from smile.model.toy import write_toy_backbone
from smile.names import JobName, TenantName, VplmName
from smile.processors import Processor, ProcessorState
from smile.resources import (
    Classification,
    ClassScore,
    DatasetReport,
    FanoutAnswer,
    FanoutResult,
    InferResult,
    JobError,
    JobProgress,
    JobState,
    LabelScore,
    Metric,
    Prediction,
    RowProblem,
    Timings,
    TrainingEvent,
    TrainingJob,
    TrainingSummary,
    VersionOrigin,
)
from smile.rpc.auth import RemoteAuthenticator, current_principal, own
from smile.rpc.channel import ServiceCredential, build_channel
from smile.rpc.keys import KeyKind, new_key
from smile.rpc.server import Service
from smile.store.objects import open_store
from smile.testing import serving
from smile.v1 import (
    creator_pb2_grpc,
    processor_pb2,
    processor_pb2_grpc,
    trainer_pb2,
    trainer_pb2_grpc,
)

STEPS = 4
SUMMARY = TrainingSummary(
    classes=(ClassScore("a", 1.0, 0.75, 0.8571, 4), ClassScore("b", 0.5, 1.0, 0.6667, 1)),
    confusion=((3, 1), (0, 1)),
    entities=(ClassScore("PER", 0.25, 0.5, 0.3333, 2),),
    seed=7,
    spec_digest="d" * 64,
    environment={"torch": "2.13"},
)


@dataclass
class Script:
    """What the scripted services do next. Failures are raised first, one per call."""

    failures: list[SmileError] = field(default_factory=list)
    cut_after: list[int] = field(
        default_factory=list
    )  # events of a watch before its connection ends
    fails_with: JobError | None = None
    request_ids: list[str] = field(default_factory=list)
    resume_tokens: list[str] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    running_max: int = 0
    running: int = 0
    answer_delay_s: float = 0.0
    hold: bool = False  # jobs stay running

    def fail(self) -> None:
        """Raise the next failure, if one is left."""
        if self.failures:
            raise self.failures.pop(0)


def _service(servicer: object, add: Any, module: Any, name: str) -> Service:
    return Service(servicer, add, module.DESCRIPTOR.services_by_name[name].full_name)


class ScriptedTrainer(trainer_pb2_grpc.TrainerServiceServicer):
    """Jobs that run at once, in `STEPS` steps, and end as the script says."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.jobs: dict[str, TrainingJob] = {}

    def _find(self, text: str) -> TrainingJob:
        name = str(own(text, JobName.parse, current_principal()))
        if name not in self.jobs:
            raise NotFound(f"{name} does not exist")
        return self.jobs[name]

    async def CreateTrainingJob(self, request: Any, context: Any) -> Any:
        self.script.request_ids.append(request.request_id)
        self.script.fail()
        tenant = own(request.parent, TenantName.parse, current_principal()).tenant
        own(request.training_job.vplm, VplmName.parse, current_principal())
        name = str(JobName(tenant, f"j{request.request_id.replace('-', '')[:20]}"))
        asked = codec.job_from_pb(request.training_job)
        made = TrainingJob(
            name=name,
            vplm=asked.vplm,
            dataset=asked.dataset,
            columns=asked.columns,
            hyper_parameters=asked.hyper_parameters,
            promote_alias=asked.promote_alias,
        )
        self.jobs.setdefault(name, made)
        return codec.job_to_pb(self.jobs[name])

    async def GetTrainingJob(self, request: Any, context: Any) -> Any:
        return codec.job_to_pb(self._find(request.name))

    async def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        parent = own(request.parent, TenantName.parse, current_principal())
        names = sorted(name for name in self.jobs if name.startswith(f"{parent}/"))
        start = int(request.page_token or 0)
        shown = names[start : start + request.page_size]
        token = str(start + len(shown)) if start + len(shown) < len(names) else ""
        return trainer_pb2.ListTrainingJobsResponse(
            training_jobs=[codec.job_to_pb(self.jobs[name]) for name in shown],
            next_page_token=token,
        )

    async def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        job = self._find(request.name)
        self.jobs[job.name] = _changed(job, state=JobState.CANCELLED)
        return codec.job_to_pb(self.jobs[job.name])

    async def RequeueTrainingJobs(self, request: Any, context: Any) -> Any:
        return trainer_pb2.RequeueTrainingJobsResponse()

    async def WatchTrainingJob(self, request: Any, context: Any) -> Any:
        self.script.resume_tokens.append(request.resume_token)
        self.script.fail()
        job = self._find(request.name)
        events = self._events(job)
        start = int(request.resume_token or 0)
        cut = self.script.cut_after.pop(0) if self.script.cut_after else None
        for number, event in enumerate(events[start:]):
            if number == cut:
                raise Unavailable("the connection was cut")
            yield codec.event_to_pb(event)
        while self.script.hold and not self.jobs[job.name].state.done:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if self.script.hold:
            yield codec.event_to_pb(TrainingEvent("9", job=self.jobs[job.name]))

    async def ValidateDataset(self, request: Any, context: Any) -> Any:
        problem = RowProblem(3, request.columns.label, "LABEL_UNKNOWN", "label 'x' is unknown")
        report = DatasetReport(10, 9, (problem,), 1, {"a": 5, "b": 4}, ("text", "label"))
        return codec.report_to_pb(report)

    def _events(self, job: TrainingJob) -> list[TrainingEvent]:
        if job.state is not JobState.CANCELLED:
            job = _changed(job, state=JobState.QUEUED, metrics={}, version="", summary=None)
        moments = [job]
        for step in range(1, STEPS + 1):
            progress = JobProgress("training", step, STEPS, 1, 1, 1.0 / step)
            moments.append(_changed(job, state=JobState.RUNNING, progress=progress))
        found: list[TrainingEvent] = []
        for number, moment in enumerate(moments, start=1):
            found.append(TrainingEvent(str(len(found) + 1), job=moment))
            if number > 1:
                metric = Metric("train_loss", moment.progress.loss, moment.progress.step, 1)
                found.append(TrainingEvent(str(len(found) + 1), metrics=(metric,)))
        if self.script.hold:
            return found
        if job.state is not JobState.CANCELLED:
            failed = self.script.fails_with
            state = JobState.FAILED if failed else JobState.SUCCEEDED
            metrics = {} if failed else {"validation_accuracy": 0.975}
            version = "" if failed else f"{job.vplm}/versions/2"
            summary = None if failed else SUMMARY
            job = _changed(
                job, state=state, error=failed, metrics=metrics, version=version, summary=summary
            )
            self.jobs[job.name] = job
        return [*found, TrainingEvent(str(len(found) + 1), job=job)]


def _changed(job: TrainingJob, **values: Any) -> TrainingJob:
    fields = {name: getattr(job, name) for name in TrainingJob.__dataclass_fields__}
    return TrainingJob(**{**fields, **values})


class ScriptedProcessor(processor_pb2_grpc.ProcessorServiceServicer):
    """Answers every text with its own length as the label."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.rented: dict[str, Processor] = {}

    async def InferFanout(self, request: Any, context: Any) -> Any:
        entries: list[FanoutAnswer | SmileError] = []
        for target in request.targets:
            asked = processor_pb2.InferRequest(name=target.name, alias=target.alias)
            asked.texts.append(request.text)
            try:
                (one,) = (
                    result := codec.infer_from_pb(await self.Infer(asked, context))
                ).predictions
            except SmileError as error:
                entries.append(error)
            else:
                entries.append(FanoutAnswer(one, result.version, result.digest, result.origin))
        return codec.fanout_to_pb(FanoutResult(tuple(entries), Timings(0, 0, 0, 0, 1, 1)))

    async def Infer(self, request: Any, context: Any) -> Any:
        self.script.fail()
        vplm = request.name.partition("/versions/")[0]
        name = own(vplm, VplmName.parse, current_principal())
        if name.vplm == "absent":
            raise NotFound(f"{name} does not exist")
        if not request.texts:
            raise InvalidArgument("texts: 1 to 10000 are taken, got 0")
        self.script.running += 1
        self.script.running_max = max(self.script.running_max, self.script.running)
        await asyncio.sleep(self.script.answer_delay_s)
        self.script.running -= 1
        self.script.batches.append(len(request.texts))
        predictions = []
        for text in request.texts:
            label = str(len(text))
            found = Classification(label, 0.75, (LabelScore(label, 0.75), LabelScore("x", 0.25)))
            predictions.append(Prediction(found, request.truncate, len(text.split()) + 2))
        timings = Timings(0.001, 0.0, 0.002, 0.004, len(predictions), 1)
        version = request.name if "/versions/" in request.name else f"{name}/versions/1"
        result = InferResult(tuple(predictions), version, "0" * 64, VersionOrigin.TRAINING, timings)
        return codec.infer_to_pb(result)

    async def RentProcessor(self, request: Any, context: Any) -> Any:
        name = own(request.vplm, VplmName.parse, current_principal())
        rented = Processor(
            f"tenants/{name.tenant}/processors/{name.vplm}",
            str(name),
            codec.terms_from_pb(request.terms),
            ProcessorState.HOT if request.wait else ProcessorState.COLD,
        )
        self.rented[rented.name] = rented
        return codec.processor_to_pb(rented)

    async def ReleaseProcessor(self, request: Any, context: Any) -> Any:
        if self.rented.pop(request.name, None) is None:
            raise NotFound(f"{request.name} does not exist")
        return empty_pb2.Empty()

    async def GetProcessor(self, request: Any, context: Any) -> Any:
        if request.name not in self.rented:
            raise NotFound(f"{request.name} does not exist")
        return codec.processor_to_pb(self.rented[request.name])

    async def ListProcessors(self, request: Any, context: Any) -> Any:
        found = [codec.processor_to_pb(each) for each in self.rented.values()]
        return processor_pb2.ListProcessorsResponse(processors=found)

    async def GetStats(self, request: Any, context: Any) -> Any:
        return processor_pb2.ProcessorStats(backbones=["backbones/toy"], texts_total=7)


@dataclass
class World:
    """Where the platform is, the operator's key, and what the scripted services do."""

    endpoints: str
    operator_key: str
    service_key: str
    trainer: Script
    processor: Script
    keys: dict[str, str] = field(default_factory=dict)

    def client(self, tenant: str) -> AsyncClient:
        """A client for a tenant made before."""
        return AsyncClient(self.keys[tenant], endpoints=self.endpoints)

    async def add_tenant(self, tenant: str, quota_bytes: int = 0) -> str:
        """Makes a tenant and gives its key."""
        async with AsyncClient(self.operator_key, endpoints=self.endpoints) as operator:
            made = await operator.create_tenant(tenant, quota_bytes=quota_bytes)
        self.keys[tenant] = made.key
        return made.key


@asynccontextmanager
async def world(*tenants: str) -> AsyncIterator[World]:
    """The platform, with these tenants."""
    service_key, operator = new_key(KeyKind.SERVICE).text, new_key(KeyKind.OPERATOR)
    async with contextlib.AsyncExitStack() as stack:
        options = StorageOptions(service_key, operator.secret_sha256)
        services, authenticator = assemble(open_store("memory://"), options)
        storage = await stack.enter_async_context(serving(services, authenticator=authenticator))
        channel = await stack.enter_async_context(
            build_channel(storage.address, credentials=ServiceCredential(service_key))
        )
        remote = RemoteAuthenticator(channel, service_key)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        catalogue = Catalogue(parse_sources(f"toy=dir:{write_toy_backbone(folder)}"))
        await catalogue.load(retry_s=0.1, ready=lambda _: None)
        stored = Stored(VplmRecords(channel), AdapterRecords(channel), VersionReader(channel))
        scripts = Script(), Script()
        add_creator = creator_pb2_grpc.add_CreatorServiceServicer_to_server
        parts = {
            "creator": Service(
                CreatorServicer(catalogue, stored),
                add_creator,
                FULL_NAME,
            ),
            "trainer": _service(
                ScriptedTrainer(scripts[0]),
                trainer_pb2_grpc.add_TrainerServiceServicer_to_server,
                trainer_pb2,
                "TrainerService",
            ),
            "processor": _service(
                ScriptedProcessor(scripts[1]),
                processor_pb2_grpc.add_ProcessorServiceServicer_to_server,
                processor_pb2,
                "ProcessorService",
            ),
        }
        addresses = {"storage": storage.address}
        for name, service in parts.items():
            server = await stack.enter_async_context(serving([service], authenticator=remote))
            addresses[name] = server.address
        endpoints = ",".join(f"{name}={address}" for name, address in addresses.items())
        made = World(endpoints, operator.text, service_key, *scripts)
        for tenant in tenants:
            await made.add_tenant(tenant)
        yield made


@contextlib.contextmanager
def world_in_thread(*tenants: str) -> Iterator[World]:
    """The platform on a loop in a thread of its own, for tests that block."""
    loop = LoopThread()
    context = world(*tenants)
    with silent_logs():
        made = loop.call(lambda _: context.__aenter__())
        try:
            yield made
        finally:
            loop.call(lambda _: context.__aexit__(None, None, None))
            loop.close()


@contextlib.contextmanager
def silent_logs() -> Iterator[None]:
    """Keeps the servers' logs away from standard output, which tests of the command line read."""
    before = structlog.get_config()
    with Path(os.devnull).open("w") as nowhere:
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(nowhere))
        try:
            yield
        finally:
            structlog.configure(**before)


def new_uuid() -> str:
    """A request id of a caller's own."""
    return str(uuid.uuid4())


def overloaded(retry_after: float = 0.01) -> Overloaded:
    """A full queue that asks to come back soon."""
    return Overloaded("queue is full: 10 of 10 texts", retry_after=retry_after)
