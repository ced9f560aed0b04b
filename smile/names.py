"""Resource names (AIP-122): the only place that parses or prints them.

`tenants/{tenant}/vplms/{vplm}/versions/{n}` and its siblings. The id pattern rules out path
traversal, unicode tricks and long names at once. A `TenantId` is a type of its own so that a
missing tenant scope in a key or a path is a type error.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NewType

from smile.errors import InvalidName

TenantId = NewType("TenantId", str)

ID_PATTERN = r"^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"
_ID = re.compile(ID_PATTERN, re.ASCII)


def check_id(value: str, what: str) -> str:
    """`value` if it is a well-formed resource id.

    Raises:
        InvalidName: it is not; the message names the pattern and (shortened) the value.
    """
    if not _ID.fullmatch(value) or value.endswith("\n"):
        raise InvalidName(
            f"{what} must be 1 to 63 characters of a-z, 0-9 and '-', start with a letter and "
            f"not end with '-', got {_shown(value)}",
            metadata={"pattern": ID_PATTERN},
        )
    return value


def tenant_id(value: str) -> TenantId:
    """`value` as a `TenantId`. Raises `InvalidName`."""
    return TenantId(check_id(value, "tenant"))


@dataclass(frozen=True, slots=True)
class VplmName:
    """`tenants/{tenant}/vplms/{vplm}`."""

    tenant: TenantId
    vplm: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/vplms/{self.vplm}"

    @classmethod
    def parse(cls, name: str) -> VplmName:
        tenant, vplm = _split(name, "tenants", "vplms")
        return cls(tenant_id(tenant), check_id(vplm, "vPLM"))


@dataclass(frozen=True, slots=True)
class VersionName:
    """`tenants/{tenant}/vplms/{vplm}/versions/{number}`; numbers count from 1."""

    vplm: VplmName
    number: int

    def __str__(self) -> str:
        return f"{self.vplm}/versions/{self.number}"

    @classmethod
    def parse(cls, name: str) -> VersionName:
        tenant, vplm, number = _split(name, "tenants", "vplms", "versions")
        if not re.fullmatch(r"[1-9][0-9]{0,8}", number, re.ASCII):
            raise InvalidName(f"a version is a number from 1, got {_shown(number)}")
        return cls(VplmName(tenant_id(tenant), check_id(vplm, "vPLM")), int(number))


@dataclass(frozen=True, slots=True)
class ProcessorName:
    """`tenants/{tenant}/processors/{vplm}`: what is rented for the vPLM of that id."""

    tenant: TenantId
    vplm: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/processors/{self.vplm}"

    @property
    def vplm_name(self) -> VplmName:
        return VplmName(self.tenant, self.vplm)

    @classmethod
    def parse(cls, name: str) -> ProcessorName:
        tenant, vplm = _split(name, "tenants", "processors")
        return cls(tenant_id(tenant), check_id(vplm, "vPLM"))


@dataclass(frozen=True, slots=True)
class DatasetName:
    """`tenants/{tenant}/datasets/{dataset}`."""

    tenant: TenantId
    dataset: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/datasets/{self.dataset}"

    @classmethod
    def parse(cls, name: str) -> DatasetName:
        tenant, dataset = _split(name, "tenants", "datasets")
        return cls(tenant_id(tenant), check_id(dataset, "dataset"))


@dataclass(frozen=True, slots=True)
class JobName:
    """`tenants/{tenant}/trainingJobs/{job}`."""

    tenant: TenantId
    job: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/trainingJobs/{self.job}"

    @classmethod
    def parse(cls, name: str) -> JobName:
        tenant, job = _split(name, "tenants", "trainingJobs")
        return cls(tenant_id(tenant), check_id(job, "training job"))


@dataclass(frozen=True, slots=True)
class ApiKeyName:
    """`tenants/{tenant}/apiKeys/{key}`."""

    tenant: TenantId
    key: str

    def __str__(self) -> str:
        return f"tenants/{self.tenant}/apiKeys/{self.key}"

    @classmethod
    def parse(cls, name: str) -> ApiKeyName:
        tenant, key = _split(name, "tenants", "apiKeys")
        return cls(tenant_id(tenant), check_id(key, "API key"))


@dataclass(frozen=True, slots=True)
class TenantName:
    """`tenants/{tenant}`."""

    tenant: TenantId

    def __str__(self) -> str:
        return f"tenants/{self.tenant}"

    @classmethod
    def parse(cls, name: str) -> TenantName:
        (tenant,) = _split(name, "tenants")
        return cls(tenant_id(tenant))


@dataclass(frozen=True, slots=True)
class BackboneName:
    """`backbones/{backbone}`."""

    backbone: str

    def __str__(self) -> str:
        return f"backbones/{self.backbone}"

    @classmethod
    def parse(cls, name: str) -> BackboneName:
        (backbone,) = _split(name, "backbones")
        return cls(check_id(backbone, "backbone"))


@dataclass(frozen=True, slots=True)
class AdapterName:
    """`publicAdapters/{adapter}`."""

    adapter: str

    def __str__(self) -> str:
        return f"publicAdapters/{self.adapter}"

    @classmethod
    def parse(cls, name: str) -> AdapterName:
        (adapter,) = _split(name, "publicAdapters")
        return cls(check_id(adapter, "public adapter"))


@dataclass(frozen=True, slots=True)
class ArtifactName:
    """`artifacts/{artifact}`."""

    artifact: str

    def __str__(self) -> str:
        return f"artifacts/{self.artifact}"

    @classmethod
    def parse(cls, name: str) -> ArtifactName:
        (artifact,) = _split(name, "artifacts")
        return cls(check_id(artifact, "artifact"))


def _split(name: str, *collections: str) -> tuple[str, ...]:
    parts = name.split("/")
    if len(parts) != 2 * len(collections) or tuple(parts[::2]) != collections:
        pattern = "/".join(f"{collection}/{{id}}" for collection in collections)
        raise InvalidName(f"a name like '{pattern}' was expected, got {_shown(name)}")
    return tuple(parts[1::2])


def _shown(value: str) -> str:
    """`value` between quotes, cut to what stays short with all its escapes."""
    kept, short = value[:77], value if len(value) <= 80 else value[:77] + "..."
    while len(repr(short)) > 120:
        kept = kept[:-1]
        short = kept + "..."
    return f"{short!r} ({len(value)} characters)"
