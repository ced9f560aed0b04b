"""Versions' history, origin and differences, and public adapters."""

from __future__ import annotations

from smile import resources as r
from smile.codec.modules import spec_from_pb, spec_to_pb
from smile.codec.tables import time_from_pb, time_to_pb
from smile.v1 import resources_pb2, storage_pb2


def canary_to_pb(canary: r.Canary) -> resources_pb2.Canary:
    return resources_pb2.Canary(version=canary.version, weight=canary.weight)


def canary_from_pb(message: resources_pb2.Canary) -> r.Canary:
    return r.Canary(message.version, message.weight)


def alias_moved_to_pb(move: r.AliasMoved) -> resources_pb2.AliasMove:
    return resources_pb2.AliasMove(
        alias=move.alias,
        number=move.number,
        version=move.version,
        canary=None if move.canary is None else canary_to_pb(move.canary),
        time=time_to_pb(move.time),
        by=move.by,
        restores=move.restores,
    )


def alias_moved_from_pb(message: resources_pb2.AliasMove) -> r.AliasMoved:
    return r.AliasMoved(
        alias=message.alias,
        number=message.number,
        version=message.version,
        canary=canary_from_pb(message.canary) if message.HasField("canary") else None,
        time=time_from_pb(message, "time"),
        by=message.by,
        restores=message.restores,
    )


def derivation_to_pb(derivation: r.Derivation) -> resources_pb2.Derivation:
    return resources_pb2.Derivation(name=derivation.name, digest=derivation.digest)


def derivation_from_pb(message: resources_pb2.Derivation) -> r.Derivation:
    return r.Derivation(message.name, message.digest)


def adapter_to_pb(adapter: r.PublicAdapter) -> resources_pb2.PublicAdapter:
    return resources_pb2.PublicAdapter(
        name=adapter.name,
        display_name=adapter.display_name,
        description=adapter.description,
        spec=spec_to_pb(adapter.spec),
        license=adapter.license,
        source=adapter.source,
        digest=adapter.digest,
        size_bytes=adapter.size_bytes,
        tags=dict(adapter.tags),
        metrics=dict(adapter.metrics),
        create_time=time_to_pb(adapter.create_time),
    )


def adapter_from_pb(message: resources_pb2.PublicAdapter) -> r.PublicAdapter:
    return r.PublicAdapter(
        name=message.name,
        spec=spec_from_pb(message.spec),
        digest=message.digest,
        size_bytes=message.size_bytes,
        create_time=time_from_pb(message, "create_time"),
        display_name=message.display_name,
        description=message.description,
        license=message.license,
        source=message.source,
        tags=dict(message.tags),
        metrics=dict(message.metrics),
    )


def diff_to_pb(diff: r.VersionDiff) -> storage_pb2.VersionDiff:
    return storage_pb2.VersionDiff(
        base=diff.base,
        other=diff.other,
        same_bytes=diff.same_bytes,
        spec=map(_change_to_pb, diff.spec),
        labels_added=diff.labels_added,
        labels_removed=diff.labels_removed,
        training=map(_change_to_pb, diff.training),
        metrics=[
            storage_pb2.MetricPair(name=pair.name, base=pair.base, other=pair.other)
            for pair in diff.metrics
        ],
        tensors=map(_tensor_to_pb, diff.tensors),
        l2=diff.l2,
        relative=diff.relative,
    )


def diff_from_pb(message: storage_pb2.VersionDiff) -> r.VersionDiff:
    return r.VersionDiff(
        base=message.base,
        other=message.other,
        same_bytes=message.same_bytes,
        spec=tuple(map(_change_from_pb, message.spec)),
        labels_added=tuple(message.labels_added),
        labels_removed=tuple(message.labels_removed),
        training=tuple(map(_change_from_pb, message.training)),
        metrics=tuple(
            r.MetricPair(
                pair.name,
                pair.base if pair.HasField("base") else None,
                pair.other if pair.HasField("other") else None,
            )
            for pair in message.metrics
        ),
        tensors=tuple(map(_tensor_from_pb, message.tensors)),
        l2=message.l2,
        relative=message.relative if message.HasField("relative") else None,
    )


def _change_to_pb(change: r.FieldChange) -> storage_pb2.FieldChange:
    return storage_pb2.FieldChange(field=change.field, base=change.base, other=change.other)


def _change_from_pb(message: storage_pb2.FieldChange) -> r.FieldChange:
    return r.FieldChange(message.field, message.base, message.other)


def _tensor_to_pb(tensor: r.TensorDiff) -> storage_pb2.TensorDiff:
    return storage_pb2.TensorDiff(
        name=tensor.name,
        base_shape=tensor.base_shape,
        other_shape=tensor.other_shape,
        l2=tensor.l2,
        max_abs=tensor.max_abs,
        relative=tensor.relative,
    )


def _tensor_from_pb(message: storage_pb2.TensorDiff) -> r.TensorDiff:
    return r.TensorDiff(
        name=message.name,
        base_shape=tuple(message.base_shape),
        other_shape=tuple(message.other_shape),
        l2=message.l2,
        max_abs=message.max_abs,
        relative=message.relative if message.HasField("relative") else None,
    )
