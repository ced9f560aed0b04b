"""What storage keeps: vPLMs, versions, datasets, tenants, keys and usage."""

from __future__ import annotations

from smile import resources as r
from smile.codec.accounting import (
    counts_from_pb,
    counts_to_pb,
    limit_use_from_pb,
    limit_use_to_pb,
    limit_values,
    limits_of,
    usage_day_from_pb,
    usage_day_to_pb,
)
from smile.codec.modules import spec_from_pb, spec_to_pb
from smile.codec.summaries import summary_from_pb, summary_to_pb
from smile.codec.tables import (
    FORMATS,
    ORIGINS,
    exactness_from_pb,
    exactness_to_pb,
    time_from_pb,
    time_to_pb,
)
from smile.codec.versioning import (
    canary_from_pb,
    canary_to_pb,
    derivation_from_pb,
    derivation_to_pb,
)
from smile.v1 import identity_pb2, resources_pb2, storage_pb2


def vplm_to_pb(vplm: r.Vplm) -> resources_pb2.Vplm:
    canaries = {alias: canary_to_pb(canary) for alias, canary in vplm.canaries.items()}
    return resources_pb2.Vplm(
        name=vplm.name,
        display_name=vplm.display_name,
        spec=spec_to_pb(vplm.spec),
        aliases=dict(vplm.aliases),
        latest_version=vplm.latest_version,
        create_time=time_to_pb(vplm.create_time),
        update_time=time_to_pb(vplm.update_time),
        etag=vplm.etag,
        uid=vplm.uid,
        labels=dict(vplm.labels),
        canaries=canaries,
        delete_time=time_to_pb(vplm.delete_time),
        purge_time=time_to_pb(vplm.purge_time),
        exactness=exactness_to_pb(vplm.exactness),
    )


def vplm_from_pb(message: resources_pb2.Vplm) -> r.Vplm:
    return r.Vplm(
        name=message.name,
        spec=spec_from_pb(message.spec),
        display_name=message.display_name,
        aliases=dict(message.aliases),
        latest_version=message.latest_version,
        create_time=time_from_pb(message, "create_time"),
        update_time=time_from_pb(message, "update_time"),
        etag=message.etag,
        uid=message.uid,
        labels=dict(message.labels),
        canaries={alias: canary_from_pb(canary) for alias, canary in message.canaries.items()},
        delete_time=time_from_pb(message, "delete_time"),
        purge_time=time_from_pb(message, "purge_time"),
        exactness=exactness_from_pb(message.exactness),
    )


def version_to_pb(version: r.VplmVersion) -> resources_pb2.VplmVersion:
    return resources_pb2.VplmVersion(
        name=version.name,
        digest=version.digest,
        size_bytes=version.size_bytes,
        spec=spec_to_pb(version.spec),
        origin=ORIGINS.to_pb(version.origin),
        training_job=version.training_job,
        metrics=dict(version.metrics),
        create_time=time_to_pb(version.create_time),
        note=version.note,
        canary=version_to_pb(version.canary) if version.canary is not None else None,
        canary_weight=version.canary_weight,
        training=None if version.training is None else summary_to_pb(version.training),
        derived_from=derivation_to_pb(version.derived_from) if version.derived_from else None,
        delete_time=time_to_pb(version.delete_time),
        purge_time=time_to_pb(version.purge_time),
        exactness=exactness_to_pb(version.exactness),
    )


def version_from_pb(message: resources_pb2.VplmVersion) -> r.VplmVersion:
    return r.VplmVersion(
        name=message.name,
        digest=message.digest,
        size_bytes=message.size_bytes,
        spec=spec_from_pb(message.spec),
        origin=ORIGINS.from_pb(message.origin),
        training_job=message.training_job,
        metrics=dict(message.metrics),
        create_time=time_from_pb(message, "create_time"),
        note=message.note,
        canary=version_from_pb(message.canary) if message.HasField("canary") else None,
        canary_weight=message.canary_weight,
        training=summary_from_pb(message.training) if message.HasField("training") else None,
        derived_from=(
            derivation_from_pb(message.derived_from) if message.HasField("derived_from") else None
        ),
        delete_time=time_from_pb(message, "delete_time"),
        purge_time=time_from_pb(message, "purge_time"),
        exactness=exactness_from_pb(message.exactness),
    )


def dataset_to_pb(dataset: r.Dataset) -> resources_pb2.Dataset:
    return resources_pb2.Dataset(
        name=dataset.name,
        format=FORMATS.to_pb(dataset.format),
        digest=dataset.digest,
        size_bytes=dataset.size_bytes,
        create_time=time_to_pb(dataset.create_time),
        display_name=dataset.display_name,
    )


def dataset_from_pb(message: resources_pb2.Dataset) -> r.Dataset:
    return r.Dataset(
        name=message.name,
        format=FORMATS.from_pb(message.format),
        digest=message.digest,
        size_bytes=message.size_bytes,
        create_time=time_from_pb(message, "create_time"),
        display_name=message.display_name,
    )


def tenant_to_pb(tenant: r.Tenant) -> identity_pb2.Tenant:
    return identity_pb2.Tenant(
        name=tenant.name,
        display_name=tenant.display_name,
        create_time=time_to_pb(tenant.create_time),
        quota_bytes=tenant.quota_bytes,
        limits=limit_values(tenant.limits),
    )


def tenant_from_pb(message: identity_pb2.Tenant) -> r.Tenant:
    return r.Tenant(
        message.name,
        message.display_name,
        time_from_pb(message, "create_time"),
        message.quota_bytes,
        {limit: value for limit, value in limits_of(message.limits).items() if value is not None},
    )


def api_key_to_pb(key: r.ApiKey) -> identity_pb2.ApiKey:
    return identity_pb2.ApiKey(
        name=key.name,
        display_name=key.display_name,
        create_time=time_to_pb(key.create_time),
        revoke_time=time_to_pb(key.revoke_time),
    )


def api_key_from_pb(message: identity_pb2.ApiKey) -> r.ApiKey:
    return r.ApiKey(
        message.name,
        message.display_name,
        time_from_pb(message, "create_time"),
        time_from_pb(message, "revoke_time"),
    )


def usage_to_pb(usage: r.Usage) -> storage_pb2.Usage:
    rows = [
        storage_pb2.VplmUsage(
            name=row.name,
            versions=row.versions,
            size_bytes=row.size_bytes,
            serving_bytes=row.serving_bytes,
            full_model_bytes=row.full_model_bytes,
            counts=counts_to_pb(row.counts),
            backbone=row.backbone,
            backbone_bytes=row.backbone_bytes,
        )
        for row in usage.vplms
    ]
    return storage_pb2.Usage(
        name=usage.name,
        stored_bytes=usage.stored_bytes,
        dataset_bytes=usage.dataset_bytes,
        quota_bytes=usage.quota_bytes,
        vplm_count=usage.vplm_count,
        vplms=rows,
        next_page_token=usage.next_page_token,
        limits=[limit_use_to_pb(use) for use in usage.limits],
        warnings=usage.warnings,
        days=[usage_day_to_pb(day) for day in usage.days],
    )


def usage_from_pb(message: storage_pb2.Usage) -> r.Usage:
    rows = tuple(
        r.VplmUsage(
            row.name,
            row.versions,
            row.size_bytes,
            row.serving_bytes,
            row.full_model_bytes,
            counts_from_pb(row.counts),
            row.backbone,
            row.backbone_bytes,
        )
        for row in message.vplms
    )
    return r.Usage(
        name=message.name,
        stored_bytes=message.stored_bytes,
        dataset_bytes=message.dataset_bytes,
        quota_bytes=message.quota_bytes,
        vplm_count=message.vplm_count,
        vplms=rows,
        next_page_token=message.next_page_token,
        limits=tuple(map(limit_use_from_pb, message.limits)),
        warnings=tuple(message.warnings),
        days=tuple(map(usage_day_from_pb, message.days)),
    )
