"""Requests that several tests build: uploads as their messages, and what is made by one message."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from google.protobuf.message import Message

from smile.v1 import creator_pb2, datasets_pb2, resources_pb2, storage_pb2, trainer_pb2
from tests.contract.every_rpc.belongings import LABELS, Belongings


def new_id() -> str:
    return str(uuid.uuid4())


def upload(parent: str, data: bytes, *, name: str | None = None, **header: Any) -> list[Message]:
    """The messages of an upload."""
    own: dict[str, Any] = {
        "parent": parent,
        "dataset_id": name or f"d{uuid.uuid4().hex[:12]}",
        "format": resources_pb2.DATASET_FORMAT_CSV,
    }
    made = datasets_pb2.UploadDatasetHeader(**(own | declared(data) | header))
    return _stream(datasets_pb2.UploadDatasetRequest, made, data)


def put_version(parent: str, data: bytes, **header: Any) -> list[Message]:
    """The messages of an import."""
    own: dict[str, Any] = {"parent": parent, "origin": resources_pb2.VERSION_ORIGIN_IMPORT}
    made = storage_pb2.PutVersionHeader(**(own | declared(data) | header))
    return _stream(storage_pb2.PutVersionRequest, made, data)


def import_vplm(owner: Belongings, data: bytes, **header: Any) -> list[Message]:
    """The messages of a new vPLM with weights from elsewhere: those of the owner's vPLM."""
    own: dict[str, Any] = {
        "parent": owner.parent,
        "vplm_id": f"v{uuid.uuid4().hex[:12]}",
        "spec": owner.spec,
    }
    made = creator_pb2.ImportVplmHeader(**(own | declared(data) | header))
    return _stream(creator_pb2.ImportVplmRequest, made, data)


def declared(data: bytes) -> dict[str, Any]:
    """What every upload says of its bytes."""
    digest = hashlib.sha256(data).hexdigest()
    return {"size_bytes": len(data), "digest": digest, "request_id": new_id()}


def _stream(make: Any, header: Message, data: bytes, size: int = 1000) -> list[Message]:
    parts = range(0, len(data), size)
    return [make(header=header), *(make(chunk=data[start : start + size]) for start in parts)]


def create_vplm(own: Belongings, **changes: Any) -> creator_pb2.CreateVplmRequest:
    fields: dict[str, Any] = {
        "parent": own.parent,
        "vplm_id": f"v{uuid.uuid4().hex[:12]}",
        "backbone": "backbones/toy",
        "pet": resources_pb2.PetSpec(kind=resources_pb2.PET_KIND_PFEIFFER, rank=4),
        "head": resources_pb2.HeadSpec(
            task=resources_pb2.TASK_SEQUENCE_CLASSIFICATION, labels=LABELS
        ),
        "request_id": new_id(),
        **changes,
    }
    return creator_pb2.CreateVplmRequest(**fields)


def create_job(own: Belongings, **changes: Any) -> trainer_pb2.CreateTrainingJobRequest:
    fields: dict[str, Any] = {
        "vplm": own.vplm(),
        "dataset": own.dataset(),
        "validation_dataset": own.dataset("more"),
        "hyper_parameters": trainer_pb2.HyperParameters(epochs=1),
        **changes,
    }
    return trainer_pb2.CreateTrainingJobRequest(
        parent=own.parent,
        training_job=trainer_pb2.TrainingJob(**fields),
        validate_only=True,
        request_id=new_id(),
    )
