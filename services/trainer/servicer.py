"""`smile.v1.TrainerService`: decode, ask the domain, encode."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import grpc

from services.trainer.jobs import Jobs
from services.trainer.validation import Validator
from services.trainer.watch import Watcher
from smile import codec
from smile.names import DatasetName, JobName, TenantName, VplmName
from smile.resources import TrainingJob
from smile.rpc.auth import Principal, current_principal, own
from smile.v1 import trainer_pb2, trainer_pb2_grpc

FULL_NAME = trainer_pb2.DESCRIPTOR.services_by_name["TrainerService"].full_name

Context = grpc.aio.ServicerContext[object, object]


class TrainerServicer(trainer_pb2_grpc.TrainerServiceServicer):
    """Every call acts for the tenant of its key, but for what operators ask."""

    def __init__(self, jobs: Jobs, watcher: Watcher, validator: Validator) -> None:
        self._jobs = jobs
        self._watcher = watcher
        self._validator = validator

    async def CreateTrainingJob(
        self, request: trainer_pb2.CreateTrainingJobRequest, context: Context
    ) -> trainer_pb2.TrainingJob:
        principal = current_principal()
        tenant = own(request.parent, TenantName.parse, principal).tenant
        wanted = _owned(codec.job_from_pb(request.training_job), principal)
        job = await self._jobs.submit(
            tenant, wanted, request.request_id, validate_only=request.validate_only
        )
        return codec.job_to_pb(job)

    async def GetTrainingJob(
        self, request: trainer_pb2.GetTrainingJobRequest, context: Context
    ) -> trainer_pb2.TrainingJob:
        name = own(request.name, JobName.parse, current_principal())
        return codec.job_to_pb(await self._jobs.get(name))

    async def ListTrainingJobs(
        self, request: trainer_pb2.ListTrainingJobsRequest, context: Context
    ) -> trainer_pb2.ListTrainingJobsResponse:
        tenant = own(request.parent, TenantName.parse, current_principal()).tenant
        page = await self._jobs.page(tenant, request.page_size, request.page_token)
        return trainer_pb2.ListTrainingJobsResponse(
            training_jobs=[codec.job_to_pb(job) for job in page.jobs],
            next_page_token=page.next_page_token,
        )

    async def CancelTrainingJob(
        self, request: trainer_pb2.CancelTrainingJobRequest, context: Context
    ) -> trainer_pb2.TrainingJob:
        name = own(request.name, JobName.parse, current_principal())
        return codec.job_to_pb(await self._jobs.cancel(name))

    async def WatchTrainingJob(
        self, request: trainer_pb2.WatchTrainingJobRequest, context: Context
    ) -> AsyncIterator[trainer_pb2.WatchTrainingJobResponse]:
        name = own(request.name, JobName.parse, current_principal())
        async for event in self._watcher.watch(name, request.resume_token):
            yield codec.event_to_pb(event)

    async def ValidateDataset(
        self, request: trainer_pb2.ValidateDatasetRequest, context: Context
    ) -> trainer_pb2.DatasetReport:
        principal = current_principal()
        report = await self._validator.report(
            own(request.dataset, DatasetName.parse, principal),
            own(request.vplm, VplmName.parse, principal),
            codec.columns_from_pb(request.columns),
        )
        return codec.report_to_pb(report)

    async def RequeueTrainingJobs(
        self, request: trainer_pb2.RequeueTrainingJobsRequest, context: Context
    ) -> trainer_pb2.RequeueTrainingJobsResponse:
        return trainer_pb2.RequeueTrainingJobsResponse(jobs=await self._jobs.reconcile())


def _owned(job: TrainingJob, principal: Principal) -> TrainingJob:
    """The job with full names, all the principal's own."""

    def dataset(name: str) -> str:
        return str(own(name, DatasetName.parse, principal)) if name else ""

    return replace(
        job,
        vplm=str(own(job.vplm, VplmName.parse, principal)),
        dataset=dataset(job.dataset),
        validation_dataset=dataset(job.validation_dataset),
    )
