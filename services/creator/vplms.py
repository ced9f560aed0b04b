"""Making vPLMs: the catalogue, the recipe and storage brought together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.creator.adapters import (
    Derived,
    HeadSource,
    Original,
    derived_spec,
    with_fresh_head,
)
from services.creator.catalogue import Catalogue
from services.creator.imports import ImportedVplm, checked
from services.creator.recipes import NewVplm, Recipe, build
from smile.client.adapter_records import AdapterRecords, OfferedAdapter
from smile.client.records import ArrivingVersion, FirstVersion, VplmRecords
from smile.client.version_reader import VersionReader
from smile.errors import AlreadyExists, DataCorrupted, NotFound
from smile.limits import MODULE_BYTES_MAX
from smile.model import weights
from smile.names import AdapterName, BackboneName, VersionName, VplmName
from smile.resources import SERVING, Backbone, Derivation, PublicAdapter, Vplm


@dataclass(frozen=True, slots=True)
class Stored:
    """What storage keeps for the creator."""

    records: VplmRecords
    adapters: AdapterRecords
    versions: VersionReader


@dataclass(frozen=True, slots=True)
class Begun:
    """A vPLM to be made of an original, and the backbone of both."""

    vplm: Vplm
    original: Original
    backbone: Backbone


class VplmMaker:
    """Turns recipes into stored vPLMs."""

    def __init__(self, catalogue: Catalogue, stored: Stored) -> None:
        self._catalogue = catalogue
        self._records = stored.records
        self._adapters = stored.adapters
        self._versions = stored.versions

    async def create(self, recipe: Recipe, backbone_name: BackboneName, request_id: str) -> Vplm:
        """A new vPLM, once per request id.

        Raises:
            NotFound: there is no such backbone.
            InvalidSpec: the PET module does not fit it.
            AlreadyExists: another request made a vPLM of this name.
            QuotaExceeded: the tenant may not store as much.
        """
        backbone = self._catalogue.get(backbone_name)
        new = await self._build(recipe, backbone)
        version = FirstVersion(new.data, new.digest, backbone)
        return await self._records.commit(new.vplm, version, request_id)

    async def adopt(self, new: ImportedVplm, chunks: AsyncIterator[bytes], request_id: str) -> Vplm:
        """A new vPLM with weights from elsewhere, once per request id; storage checks them.

        Raises:
            NotFound: there is no such backbone.
            InvalidSpec: the PET module does not fit it, or takes more than 64 MiB.
            InvalidArgument: it was made for other weights of the backbone, or the bytes are not
                what was declared, or not the spec's tensors.
            AlreadyExists: another request made a vPLM of this name.
            QuotaExceeded: the tenant may not store as much.
        """
        backbone = self._catalogue.get(BackboneName(new.spec.backbone))
        spec = checked(new.spec, backbone)
        vplm = Vplm(str(new.name), spec, display_name=new.display_name, labels=dict(new.labels))
        version = ArrivingVersion(new.size_bytes, new.digest, backbone, new.note)
        return await self._records.adopt(vplm, version, chunks, request_id)

    async def derive(self, wanted: Derived, request_id: str) -> Vplm:
        """A new vPLM that begins as a public adapter or a version, once per request id.

        Raises:
            NotFound: there is no such adapter, vPLM or version.
            FailedPrecondition: it is for other weights of its backbone.
            InvalidSpec: another precision is asked for than it has, or it is a whole model.
            AlreadyExists: another request made a vPLM of this name.
            QuotaExceeded: the tenant may not store as much.
        """
        begun = await self._derived(wanted)
        vplm, original, backbone = begun.vplm, begun.original, begun.backbone
        as_it_is = vplm.spec.same_module(original.spec)
        if as_it_is and isinstance(original, PublicAdapter):
            return await self._records.refer(vplm, OfferedAdapter(original, backbone), request_id)
        data = await self._bytes(original)
        if not as_it_is:
            head = HeadSource(backbone, wanted.seed)
            data = await asyncio.to_thread(with_fresh_head, data, original, vplm.spec, head)
        source = Derivation(original.name, original.digest)
        version = FirstVersion(data, weights.sha256_hex(data), backbone, source)
        return await self._records.commit(vplm, version, request_id)

    async def check_derived(self, wanted: Derived) -> Vplm:
        """What `derive` would make, without making it. Raises what it raises, but quota."""
        begun = await self._derived(wanted)
        return await self._free(begun.vplm, wanted.name)

    async def _derived(self, wanted: Derived) -> Begun:
        original = await self._original(wanted)
        backbone = self._catalogue.get(BackboneName(original.spec.backbone))
        vplm = Vplm(
            name=str(wanted.name),
            spec=derived_spec(wanted, original, backbone),
            display_name=wanted.display_name,
            labels=dict(wanted.labels),
            exactness=wanted.exactness,
        )
        return Begun(vplm, original, backbone)

    async def _original(self, wanted: Derived) -> Original:
        match wanted.source:
            case AdapterName():
                return (await self._adapters.get(wanted.source)).adapter
            case VersionName():
                return await self._versions.get(wanted.source)
            case VplmName():
                return await self._versions.resolve(wanted.source, SERVING)

    async def _bytes(self, original: Original) -> bytes:
        """An original's bytes, checked."""
        if isinstance(original, PublicAdapter):
            return await self._adapters.download(AdapterName.parse(original.name))
        data = bytearray()
        name = VersionName.parse(original.name)
        async for chunk in self._versions.download(name, original.digest):
            data += chunk
            if len(data) > MODULE_BYTES_MAX:
                raise DataCorrupted(f"{name} has more than {MODULE_BYTES_MAX} bytes")
        whole = bytes(data)
        if weights.sha256_hex(whole) != original.digest:
            raise DataCorrupted(f"{name} does not have the digest {original.digest}")
        return whole

    async def check(self, recipe: Recipe, backbone_name: BackboneName) -> Vplm:
        """What `create` would make, without making it. Raises what `create` raises, but quota."""
        new = await self._build(recipe, self._catalogue.get(backbone_name))
        return await self._free(new.vplm, recipe.name)

    async def _free(self, vplm: Vplm, name: VplmName) -> Vplm:
        """`vplm` where nothing has its name."""
        try:
            await self._records.get(name)
        except NotFound:
            return vplm
        raise AlreadyExists(f"{name} already exists")

    async def _build(self, recipe: Recipe, backbone: Backbone) -> NewVplm:
        return await asyncio.to_thread(build, recipe, backbone)
