"""Storage's parts, put together over one object store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from services.storage.accounting.accounts import Accounts
from services.storage.adapters import Adapters
from services.storage.artifacts import Artifacts
from services.storage.blobs import ByteBudget
from services.storage.catalog import Catalog
from services.storage.changes import Announcer
from services.storage.datasets import Datasets
from services.storage.diffs import Diffs
from services.storage.feed.hub import Hub
from services.storage.grace import DELETE_GRACE, Grace
from services.storage.identity import Identity
from services.storage.maintenance.collect import GRACE
from services.storage.quota import Ledger
from services.storage.servicer import (
    accounting,
    adapters,
    artifacts,
    changes,
    datasets,
    identity,
    maintenance,
    training_records,
    vplms,
)
from services.storage.servicer.authenticator import LocalAuthenticator
from services.storage.shelves import Shelves
from services.storage.training_records import TrainingRecords
from services.storage.trash import Trash
from services.storage.usage import UsageReports
from services.storage.version_trash import VersionTrash
from services.storage.versions import Versions
from smile.accounting import DEFAULT_LIMITS, Limits
from smile.limits import DATASET_BYTES_MAX, MIB
from smile.maintenance import StoreReport
from smile.rpc.server import Service
from smile.store.objects import ObjectStore
from smile.v1 import (
    accounting_pb2_grpc,
    adapters_pb2_grpc,
    artifacts_pb2_grpc,
    changes_pb2_grpc,
    datasets_pb2_grpc,
    identity_pb2_grpc,
    maintenance_pb2_grpc,
    storage_pb2_grpc,
    training_records_pb2_grpc,
)


@dataclass(frozen=True, slots=True)
class StorageOptions:
    """What the parts need beside the store; see `StorageSettings`. `limits` are of tenants that
    have none of their own; `gc_grace` is how long garbage lies; `report` tells of the store."""

    service_key: str
    operator_key_sha256: str = ""
    dataset_bytes_max: int = DATASET_BYTES_MAX
    upload_bytes_max: int = 512 * MIB
    delete_grace: timedelta = DELETE_GRACE
    limits: Limits = field(default_factory=lambda: DEFAULT_LIMITS)
    gc_grace: timedelta = GRACE
    report: Callable[[], StoreReport] = lambda: StoreReport("a store that was not probed")


@dataclass(frozen=True, slots=True)
class Feed:
    """Who is told of changes, and who tells watchers. By default nobody."""

    announcer: Announcer | None = None
    hub: Hub | None = None


def assemble(
    store: ObjectStore, options: StorageOptions, feed: Feed | None = None
) -> tuple[list[Service], LocalAuthenticator]:
    """The services to serve, and who checks keys for them."""
    feed = feed or Feed()
    owner = Identity(store, feed.announcer, options.limits)
    accounts = Accounts.build(store, owner)
    ledger = Ledger(store)
    budget = ByteBudget(options.upload_bytes_max)
    catalog = Catalog(store, owner, ledger, budget, feed.announcer)
    versions = Versions(store, catalog, owner, ledger, budget)
    grace = Grace(store, options.delete_grace)
    trash = Trash(store, catalog, ledger, grace, feed.announcer)
    shelves = Shelves(
        catalog,
        versions,
        trash,
        VersionTrash(store, trash, ledger, feed.announcer),
        Diffs(store, versions, budget),
        UsageReports(store, owner, accounts),
    )
    authenticator = LocalAuthenticator(owner, options.service_key, options.operator_key_sha256)
    services = [
        Service(
            vplms.StorageServicer(shelves),
            storage_pb2_grpc.add_StorageServiceServicer_to_server,
            vplms.FULL_NAME,
        ),
        Service(
            datasets.DatasetServicer(Datasets(store, owner, ledger, options.dataset_bytes_max)),
            datasets_pb2_grpc.add_DatasetServiceServicer_to_server,
            datasets.FULL_NAME,
        ),
        Service(
            identity.IdentityServicer(owner, authenticator),
            identity_pb2_grpc.add_IdentityServiceServicer_to_server,
            identity.FULL_NAME,
        ),
        Service(
            training_records.TrainingRecordServicer(TrainingRecords(store, owner)),
            training_records_pb2_grpc.add_TrainingRecordServiceServicer_to_server,
            training_records.FULL_NAME,
        ),
        Service(
            adapters.AdapterRecordServicer(Adapters(store, catalog, versions, budget)),
            adapters_pb2_grpc.add_AdapterRecordServiceServicer_to_server,
            adapters.FULL_NAME,
        ),
        Service(
            artifacts.ArtifactServicer(Artifacts(store)),
            artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server,
            artifacts.FULL_NAME,
        ),
        Service(
            accounting.AccountingServicer(accounts),
            accounting_pb2_grpc.add_AccountingServiceServicer_to_server,
            accounting.FULL_NAME,
        ),
        Service(
            maintenance.MaintenanceServicer(store, options.report, options.gc_grace),
            maintenance_pb2_grpc.add_MaintenanceServiceServicer_to_server,
            maintenance.FULL_NAME,
        ),
        Service(
            changes.ChangeFeedServicer(feed.hub),
            changes_pb2_grpc.add_ChangeFeedServiceServicer_to_server,
            changes.FULL_NAME,
        ),
    ]
    return services, authenticator
