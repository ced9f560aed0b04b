"""Making vPLMs: the catalogue, the recipe and storage brought together."""

from __future__ import annotations

import asyncio

from services.creator.catalogue import Catalogue
from services.creator.recipes import NewVplm, Recipe, build
from smile.client.records import FirstVersion, VplmRecords
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
