"""Requests of the trainer."""

from __future__ import annotations

from smile.v1 import trainer_pb2
from tests.contract.every_rpc.area import Area
from tests.contract.every_rpc.messages import create_job, new_id

AREA = Area(
    requests={
        "TrainerService.CreateTrainingJob": lambda own, _: create_job(own),
        "TrainerService.GetTrainingJob": lambda own, _: trainer_pb2.GetTrainingJobRequest(
            name=own.jobs[0]
        ),
        "TrainerService.ListTrainingJobs": lambda own, _: trainer_pb2.ListTrainingJobsRequest(
            parent=own.parent
        ),
        "TrainerService.CancelTrainingJob": lambda own, _: trainer_pb2.CancelTrainingJobRequest(
            name=own.jobs[1], request_id=new_id()
        ),
        "TrainerService.WatchTrainingJob": lambda own, _: trainer_pb2.WatchTrainingJobRequest(
            name=own.jobs[2]
        ),
        "TrainerService.ValidateDataset": lambda own, _: trainer_pb2.ValidateDatasetRequest(
            dataset=own.dataset(), vplm=own.vplm()
        ),
    },
    names=frozenset(
        {
            "CreateTrainingJobRequest.parent",
            "TrainingJob.vplm",
            "TrainingJob.dataset",
            "TrainingJob.validation_dataset",
            "GetTrainingJobRequest.name",
            "ListTrainingJobsRequest.parent",
            "CancelTrainingJobRequest.name",
            "WatchTrainingJobRequest.name",
            "ValidateDatasetRequest.dataset",
            "ValidateDatasetRequest.vplm",
        }
    ),
    output=frozenset(
        {
            "TrainingJob.name",
            "TrainingJob.version",
            "TrainingProgress.phase",
            "JobError",
            "TrainingJob.metrics",
            "TrainingJob.parent_job",
            "Sweep.metric",
            "TrialOutcome.job",
            "TrialOutcome.version",
        }
    ),
    free=frozenset(
        {
            "resume_token",
            "promote_alias",
            "metrics",
            "class_weights",
        }
    ),
)
