"""Care of the object store."""

from __future__ import annotations

from smile import maintenance as m
from smile.codec.tables import EnumTable, time_from_pb, time_to_pb
from smile.v1 import maintenance_pb2

CAPABILITIES = EnumTable(m.Capability, "STORE_CAPABILITY", maintenance_pb2.StoreCapability)
MODES = EnumTable(m.StoreMode, "STORE_MODE", maintenance_pb2.StoreMode)
FINDING_KINDS = EnumTable(m.FindingKind, "FINDING_KIND", maintenance_pb2.FindingKind)
SEVERITIES = EnumTable(m.Severity, "SEVERITY", maintenance_pb2.Severity)
ACTIONS = EnumTable(
    m.Action, "MAINTENANCE_ACTION", maintenance_pb2.MaintenanceAction, m.Action.NONE
)
_PROGRESS = tuple(m.MaintenanceProgress.__dataclass_fields__)
_SUMMARY = tuple(m.MaintenanceSummary.__dataclass_fields__)


def store_to_pb(report: m.StoreReport) -> maintenance_pb2.Store:
    return maintenance_pb2.Store(
        store=report.store,
        probe_time=time_to_pb(report.probe_time),
        capabilities=[
            maintenance_pb2.CapabilityReport(
                capability=CAPABILITIES.to_pb(seen.capability),
                granted=seen.granted,
                detail=seen.detail,
            )
            for seen in report.capabilities
        ],
        modes=[
            maintenance_pb2.ModeReport(
                mode=MODES.to_pb(mode.mode),
                wanted=mode.wanted,
                missing=[CAPABILITIES.to_pb(each) for each in mode.missing],
            )
            for mode in report.modes
        ],
        signing=maintenance_pb2.Signing(
            key=report.signing.key,
            verification_keys=report.signing.verification_keys,
            unsigned_accepted=report.signing.unsigned_accepted,
        ),
    )


def store_from_pb(message: maintenance_pb2.Store) -> m.StoreReport:
    return m.StoreReport(
        store=message.store,
        probe_time=time_from_pb(message, "probe_time"),
        capabilities=tuple(
            m.CapabilityReport(CAPABILITIES.from_pb(seen.capability), seen.granted, seen.detail)
            for seen in message.capabilities
        ),
        modes=tuple(
            m.ModeReport(
                MODES.from_pb(mode.mode),
                mode.wanted,
                tuple(CAPABILITIES.from_pb(each) for each in mode.missing),
            )
            for mode in message.modes
        ),
        signing=m.Signing(
            message.signing.key,
            tuple(message.signing.verification_keys),
            message.signing.unsigned_accepted,
        ),
    )


def maintenance_event_to_pb(event: m.MaintenanceEvent) -> maintenance_pb2.MaintenanceEvent:
    if isinstance(event, m.Finding):
        return maintenance_pb2.MaintenanceEvent(finding=_finding_to_pb(event))
    if isinstance(event, m.MaintenanceProgress):
        progress = maintenance_pb2.MaintenanceProgress(
            **{name: getattr(event, name) for name in _PROGRESS}
        )
        return maintenance_pb2.MaintenanceEvent(progress=progress)
    summary = maintenance_pb2.MaintenanceSummary(
        **{name: getattr(event, name) for name in _SUMMARY}
    )
    return maintenance_pb2.MaintenanceEvent(summary=summary)


def maintenance_event_from_pb(message: maintenance_pb2.MaintenanceEvent) -> m.MaintenanceEvent:
    part = message.WhichOneof("part")
    if part == "finding":
        return _finding_from_pb(message.finding)
    if part == "progress":
        return m.MaintenanceProgress(
            **{name: getattr(message.progress, name) for name in _PROGRESS}
        )
    return m.MaintenanceSummary(**{name: getattr(message.summary, name) for name in _SUMMARY})


def _finding_to_pb(finding: m.Finding) -> maintenance_pb2.Finding:
    return maintenance_pb2.Finding(
        kind=FINDING_KINDS.to_pb(finding.kind),
        severity=SEVERITIES.to_pb(finding.severity),
        object_key=finding.object_key,
        resource=finding.resource,
        detail=finding.detail,
        size_bytes=finding.size_bytes,
        action=ACTIONS.to_pb(finding.action),
    )


def _finding_from_pb(message: maintenance_pb2.Finding) -> m.Finding:
    return m.Finding(
        kind=FINDING_KINDS.from_pb(message.kind),
        severity=SEVERITIES.from_pb(message.severity),
        object_key=message.object_key,
        resource=message.resource,
        detail=message.detail,
        size_bytes=message.size_bytes,
        action=ACTIONS.from_pb(message.action),
    )
