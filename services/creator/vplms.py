"""Making vPLMs: the catalogue, the recipe and storage brought together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.creator.adapters import Derived, HeadSource, derived_spec, with_fresh_head
from services.creator.catalogue import Catalogue
from services.creator.imports import ImportedVplm, checked
from services.creator.recipes import NewVplm, Recipe, build
from smile.client.adapter_records import AdapterRecords, OfferedAdapter
from smile.client.records import ArrivingVersion, FirstVersion, VplmRecords
from smile.errors import AlreadyExists, NotFound
from smile.model import weights
from smile.names import BackboneName, VplmName
from smile.resources import Backbone, Derivation, Vplm


class VplmMaker:
    """Turns recipes into stored vPLMs."""

    def __init__(
        self, catalogue: Catalogue, records: VplmRecords, adapters: AdapterRecords
    ) -> None:
        self._catalogue = catalogue
        self._records = records
        self._adapters = adapters

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
        """A new vPLM that begins as a public adapter, once per request id.

        Raises:
            NotFound: there is no such adapter.
            FailedPrecondition: it is for other weights of its backbone.
            InvalidSpec: another precision is asked for than it has.
            AlreadyExists: another request made a vPLM of this name.
            QuotaExceeded: the tenant may not store as much.
        """
        offered, vplm = await self._derived(wanted)
        adapter = offered.adapter
        if vplm.spec.same_module(adapter.spec):
            return await self._records.refer(vplm, offered, request_id)
        data = await self._adapters.download(wanted.adapter)
        made = await asyncio.to_thread(
            with_fresh_head, data, adapter, vplm.spec, HeadSource(offered.backbone, wanted.seed)
        )
        version = FirstVersion(
            made,
            weights.sha256_hex(made),
            offered.backbone,
            Derivation(adapter.name, adapter.digest),
        )
        return await self._records.commit(vplm, version, request_id)

    async def check_derived(self, wanted: Derived) -> Vplm:
        """What `derive` would make, without making it. Raises what it raises, but quota."""
        _, vplm = await self._derived(wanted)
        return await self._free(vplm, wanted.name)

    async def _derived(self, wanted: Derived) -> tuple[OfferedAdapter, Vplm]:
        offered = await self._adapters.get(wanted.adapter)
        backbone = self._catalogue.get(BackboneName.parse(offered.backbone.name))
        spec = derived_spec(wanted, offered.adapter, backbone)
        vplm = Vplm(
            name=str(wanted.name),
            spec=spec,
            display_name=wanted.display_name,
            labels=dict(wanted.labels),
        )
        return offered, vplm

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
