"""Making vPLMs: the catalogue, the recipe and storage brought together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from services.creator.catalogue import Catalogue
from services.creator.imports import ImportedVplm, checked
from services.creator.recipes import NewVplm, Recipe, build
from smile.client.records import ArrivingVersion, FirstVersion, VplmRecords
from smile.errors import AlreadyExists, NotFound
from smile.names import BackboneName
from smile.resources import Backbone, Vplm


class VplmMaker:
    """Turns recipes into stored vPLMs."""

    def __init__(self, catalogue: Catalogue, records: VplmRecords) -> None:
        self._catalogue = catalogue
        self._records = records

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

    async def check(self, recipe: Recipe, backbone_name: BackboneName) -> Vplm:
        """What `create` would make, without making it. Raises what `create` raises, but quota."""
        new = await self._build(recipe, self._catalogue.get(backbone_name))
        try:
            await self._records.get(recipe.name)
        except NotFound:
            return new.vplm
        raise AlreadyExists(f"{recipe.name} already exists")

    async def _build(self, recipe: Recipe, backbone: Backbone) -> NewVplm:
        return await asyncio.to_thread(build, recipe, backbone)
