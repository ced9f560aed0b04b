"""Artifacts and the wire."""

from __future__ import annotations

from smile.artifacts import Artifact, ArtifactFile, ArtifactKind
from smile.codec.tables import EnumTable, time_from_pb, time_to_pb
from smile.v1 import artifacts_pb2

ARTIFACT_KINDS = EnumTable(ArtifactKind, "ARTIFACT_KIND", artifacts_pb2.ArtifactKind)


def artifact_to_pb(artifact: Artifact) -> artifacts_pb2.Artifact:
    files = [
        artifacts_pb2.ArtifactFile(name=f.name, size_bytes=f.size_bytes, digest=f.digest)
        for f in artifact.files
    ]
    return artifacts_pb2.Artifact(
        name=artifact.name,
        kind=ARTIFACT_KINDS.to_pb(artifact.kind),
        files=files,
        backbone=artifact.backbone,
        backbone_digest=artifact.backbone_digest,
        encoder_digest=artifact.encoder_digest,
        boundary=artifact.boundary,
        rows=artifact.rows,
        note=artifact.note,
        create_time=time_to_pb(artifact.create_time),
    )


def artifact_from_pb(message: artifacts_pb2.Artifact) -> Artifact:
    return Artifact(
        name=message.name,
        kind=ARTIFACT_KINDS.from_pb(message.kind),
        files=tuple(ArtifactFile(f.name, f.size_bytes, f.digest) for f in message.files),
        backbone=message.backbone,
        backbone_digest=message.backbone_digest,
        encoder_digest=message.encoder_digest,
        boundary=message.boundary,
        rows=message.rows,
        note=message.note,
        create_time=time_from_pb(message, "create_time"),
    )
