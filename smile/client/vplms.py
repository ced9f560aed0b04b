"""Backbones and vPLMs: what the creator answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Unpack

from google.protobuf.field_mask_pb2 import FieldMask

from smile import codec
from smile.client import options as o
from smile.client.calls import (
    PAGE_ROWS,
    READ_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    Calls,
    asking,
    every,
    new_request_id,
)
from smile.model.specs import DType, PetSpec
from smile.resources import Backbone, Exactness, Vplm
from smile.v1 import creator_pb2, resources_pb2


class VplmCalls(Calls):
    """Creating, finding, changing and deleting vPLMs."""

    async def backbones(self, *, timeout: float | None = None) -> list[Backbone]:
        """The backbones a vPLM can be built on, by name."""

        async def page(token: str) -> tuple[list[Backbone], str]:
            request = creator_pb2.ListBackbonesRequest(page_size=PAGE_ROWS, page_token=token)
            with asking():
                response = await self._connection.creator.ListBackbones(
                    request, timeout=timeout or READ_TIMEOUT_S
                )
            return [codec.backbone_from_pb(b) for b in response.backbones], response.next_page_token

        return [backbone async for backbone in every(page)]

    async def backbone(self, name: str, *, timeout: float | None = None) -> Backbone:
        """One backbone. Raises `NotFound`."""
        request = creator_pb2.GetBackboneRequest(name=str(self._scope.backbone(name)))
        with asking():
            found = await self._connection.creator.GetBackbone(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return codec.backbone_from_pb(found)

    async def create_vplm(
        self,
        vplm: str,
        *,
        backbone: str,
        pet: PetSpec,
        labels: Sequence[str] = (),
        **options: Unpack[o.VplmOptions],
    ) -> Vplm:
        """A new vPLM, at once; untrained, its head is random. Keywords: `VplmOptions`.

        Raises:
            InvalidSpec: PET module, labels or task do not go together, or not with the backbone.
            NotFound: there is no such backbone.
            AlreadyExists: you have a vPLM of this name.
            QuotaExceeded: it would take more than the tenant may store.
        """
        o.known(options, o.VplmOptions)
        name = self._scope.vplm(vplm)
        precision = o.choice(DType, options.get("precision", DType.FLOAT16), "precision")
        with asking():
            request = creator_pb2.CreateVplmRequest(
                parent=str(self._scope.parent(name.tenant)),
                vplm_id=name.vplm,
                backbone=str(self._scope.backbone(backbone)),
                pet=codec.pet_to_pb(pet),
                head=codec.head_to_pb(o.head(labels, options)),
                precision=codec.PRECISIONS.to_pb(precision),
                display_name=options.get("display_name", ""),
                labels=dict(options.get("tags", {})),
                seed=options.get("seed", 0),
                validate_only=options.get("validate_only", False),
                request_id=options.get("request_id") or new_request_id(),
                domain=options.get("domain", ""),
                exactness=codec.exactness_to_pb(_exactness(options.get("exactness"))),
            )
            created = await self._connection.creator.CreateVplm(
                request, timeout=options.get("timeout", WRITE_TIMEOUT_S)
            )
        return codec.vplm_from_pb(created)

    async def derive_vplm(
        self,
        vplm: str,
        adapter: str = "",
        *,
        labels: Sequence[str] = (),
        **options: Unpack[o.DeriveOptions],
    ) -> Vplm:
        """A new vPLM that begins as a public adapter, or as another vPLM of yours (`base`): with
        its module, and with a fresh head for `labels`, or without labels as it is. Training goes on
        from there. Keywords: `DeriveOptions`.

        Raises:
            NotFound: there is no such adapter or vPLM.
            InvalidSpec: labels and task do not go together.
            AlreadyExists: you have a vPLM of this name.
            QuotaExceeded: it would take more than the tenant may store.
        """
        o.known(options, o.DeriveOptions)
        name = self._scope.vplm(vplm)
        fresh = bool(labels) or bool({"task", "pooling"} & options.keys())
        head = o.head(labels, options) if fresh else None
        base = options.get("base", "")
        with asking():
            request = creator_pb2.CreateVplmRequest(
                parent=str(self._scope.parent(name.tenant)),
                vplm_id=name.vplm,
                public_adapter=str(self._scope.adapter(adapter)) if adapter or not base else "",
                base=str(self._scope.servable(base)) if base else "",
                head=None if head is None else codec.head_to_pb(head),
                display_name=options.get("display_name", ""),
                labels=dict(options.get("tags", {})),
                seed=options.get("seed", 0),
                validate_only=options.get("validate_only", False),
                request_id=options.get("request_id") or new_request_id(),
                domain=options.get("domain", ""),
                exactness=codec.exactness_to_pb(_exactness(options.get("exactness"))),
            )
            created = await self._connection.creator.CreateVplm(
                request, timeout=options.get("timeout", WRITE_TIMEOUT_S)
            )
        return codec.vplm_from_pb(created)

    async def vplm(self, vplm: str, *, timeout: float | None = None) -> Vplm:
        """One vPLM. Raises `NotFound`."""
        with asking():
            request = creator_pb2.GetVplmRequest(name=str(self._scope.vplm(vplm)))
            found = await self._connection.creator.GetVplm(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return codec.vplm_from_pb(found)

    async def vplms(
        self,
        *,
        show_deleted: bool = False,
        page_size: int = PAGE_ROWS,
        timeout: float | None = None,
    ) -> AsyncGenerator[Vplm, None]:
        """One's vPLMs by id, read page by page; `timeout` is for a page. With `show_deleted` also
        those that can be had back: they have a `delete_time`.
        """
        parent = str(self._scope.parent())

        async def page(token: str) -> tuple[list[Vplm], str]:
            with asking():
                response = await self._connection.creator.ListVplms(
                    creator_pb2.ListVplmsRequest(
                        parent=parent,
                        page_size=page_size,
                        page_token=token,
                        show_deleted=show_deleted,
                    ),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            return [codec.vplm_from_pb(v) for v in response.vplms], response.next_page_token

        async for vplm in every(page):
            yield vplm

    async def update_vplm(
        self,
        vplm: str,
        *,
        display_name: str | None = None,
        tags: Mapping[str, str] | None = None,
        exactness: Exactness | str | None = None,
        etag: str = "",
        timeout: float | None = None,
    ) -> Vplm:
        """Changes what is given; `tags` replaces all of them. For `exactness` see `VplmOptions`.

        Raises:
            Aborted: `etag` is given and the vPLM has changed since.
        """
        paths = [
            path
            for path, value in (
                ("display_name", display_name),
                ("labels", tags),
                ("exactness", exactness),
            )
            if value is not None
        ]
        with asking():
            changed = resources_pb2.Vplm(
                name=str(self._scope.vplm(vplm)),
                display_name=display_name or "",
                labels=dict(tags or {}),
                etag=etag,
                exactness=codec.exactness_to_pb(_exactness(exactness)),
            )
            request = creator_pb2.UpdateVplmRequest(
                vplm=changed, update_mask=FieldMask(paths=paths), request_id=new_request_id()
            )
            updated = await self._connection.creator.UpdateVplm(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.vplm_from_pb(updated)

    async def delete_vplm(
        self, vplm: str, *, for_good: bool = False, etag: str = "", timeout: float | None = None
    ) -> None:
        """Deletes a vPLM with all its versions. `undelete_vplm` has it back until the `purge_time`
        that `vplms(show_deleted=True)` tells; with `for_good` nothing has, and what was deleted
        under its name before is gone too. The name is free at once.

        Raises:
            NotFound: there is no such vPLM.
            Aborted: `etag` is given and the vPLM has changed since.
        """
        with asking():
            request = creator_pb2.DeleteVplmRequest(
                name=str(self._scope.vplm(vplm)),
                etag=etag,
                request_id=new_request_id(),
                for_good=for_good,
            )
            await self._connection.creator.DeleteVplm(request, timeout=timeout or WRITE_TIMEOUT_S)

    async def undelete_vplm(
        self, vplm: str, *, uid: str = "", etag: str = "", timeout: float | None = None
    ) -> Vplm:
        """Has a deleted vPLM back, as it was: the last that was deleted under this name, or the one
        with `uid`.

        Raises:
            NotFound: none can be had back.
            AlreadyExists: another vPLM has the name.
        """
        with asking():
            request = creator_pb2.UndeleteVplmRequest(
                name=str(self._scope.vplm(vplm)), uid=uid, etag=etag, request_id=new_request_id()
            )
            back = await self._connection.creator.UndeleteVplm(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )
        return codec.vplm_from_pb(back)


def _exactness(given: Exactness | str | None) -> Exactness | None:
    return None if given is None else o.choice(Exactness, given, "exactness")
