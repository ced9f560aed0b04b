"""Short ids to full resource names: `topic` is `tenants/{mine}/vplms/topic`."""

from __future__ import annotations

from dataclasses import dataclass

from smile.errors import InvalidArgument
from smile.names import (
    AdapterName,
    ApiKeyName,
    BackboneName,
    DatasetName,
    JobName,
    TenantId,
    TenantName,
    VersionName,
    VplmName,
    check_id,
    tenant_id,
)
from smile.rpc.keys import KeyParts

_MINE = "-"


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose names short ids are. `tenant` is None for the operator's key.

    Every method takes a short id or a full name (`tenants/-/...` means one's own) and raises
    `InvalidName` for what is neither, and `InvalidArgument` for a short id without a tenant.
    """

    tenant: TenantId | None

    @classmethod
    def of_key(cls, api_key: str) -> Scope:
        """The scope of a key. Raises `Unauthenticated` where it is malformed."""
        return cls(KeyParts.parse(api_key).tenant)

    def parent(self, tenant: str | None = None) -> TenantName:
        """The tenant to look under: the one named, else one's own."""
        if tenant is None:
            return TenantName(self._own())
        if "/" in tenant:
            return TenantName.parse(self._mine(tenant))
        return TenantName(tenant_id(tenant))

    def vplm(self, text: str) -> VplmName:
        if "/" in text:
            return VplmName.parse(self._mine(text))
        return VplmName(self._own(), check_id(text, "vPLM"))

    def version(self, vplm: str, number: int) -> VersionName:
        """Version `number` of a vPLM. Raises `InvalidName` for numbers below 1."""
        return VersionName.parse(f"{self.vplm(vplm)}/versions/{number}")

    def servable(self, text: str) -> VplmName | VersionName:
        """What inference may name: a vPLM, or by its full name one version of it."""
        if "/versions/" in text:
            return VersionName.parse(self._mine(text))
        return self.vplm(text)

    def dataset(self, text: str) -> DatasetName:
        if "/" in text:
            return DatasetName.parse(self._mine(text))
        return DatasetName(self._own(), check_id(text, "dataset"))

    def job(self, text: str) -> JobName:
        if "/" in text:
            return JobName.parse(self._mine(text))
        return JobName(self._own(), check_id(text, "training job"))

    def api_key(self, text: str) -> ApiKeyName:
        if "/" in text:
            return ApiKeyName.parse(self._mine(text))
        return ApiKeyName(self._own(), check_id(text, "API key"))

    @staticmethod
    def adapter(text: str) -> AdapterName:
        if "/" in text:
            return AdapterName.parse(text)
        return AdapterName(check_id(text, "public adapter"))

    @staticmethod
    def backbone(text: str) -> BackboneName:
        if "/" in text:
            return BackboneName.parse(text)
        return BackboneName(check_id(text, "backbone"))

    def _own(self) -> TenantId:
        if self.tenant is None:
            raise InvalidArgument(
                "an operator's key has no tenant of its own: give the full name, tenants/..."
            )
        return self.tenant

    def _mine(self, text: str) -> str:
        prefix, _, rest = text.partition("/")
        first, slash, rest = rest.partition("/")
        if prefix == "tenants" and first == _MINE:
            return f"tenants/{self._own()}{slash}{rest}"
        return text
