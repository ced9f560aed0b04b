"""The creator killed at every step of making a vPLM, in each of the ways there are to make one."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence

from google.protobuf.message import Message

from smile.errors import SmileError
from smile.v1 import creator_pb2, resources_pb2, storage_pb2
from tests.contract.storage_world import StorageWorld, new_id
from tests.faults.failpoints import Blow
from tests.faults.operations import TENANT
from tests.faults.platform import VPLM, Platform
from tests.faults.processes import PATIENCE_S
from tests.faults.storing import compared
from tests.faults.tally import Selection, Tally, numbered
from tests.faults.training import note, timed

MADE_ONCE = "a vPLM is made once and whole, or nothing of it is seen; repeating completes"
HEAD = resources_pb2.HeadSpec(
    task=resources_pb2.TASK_SEQUENCE_CLASSIFICATION, labels=["no", "yes", "maybe"]
)
PIECE_BYTES = 500
Parts = Message | Sequence[Message]


class Making:
    """Requests to a platform's creator, made of what a trained vPLM there has."""

    def __init__(self, here: Platform) -> None:
        store = here.store
        self._here = here
        self._key = store.world.keys[TENANT]
        self._data = b""
        self._spec = resources_pb2.ModuleSpec()
        self._serial = 0
        self.ways: dict[str, Callable[[str], tuple[str, Parts]]] = {
            "create": self._create,
            "copy": self._copy,
            "with another head": self._with_another_head,
            "import": self._import,
        }

    async def look(self) -> None:
        """Fetch what is to be imported."""
        name = f"tenants/{TENANT}/vplms/{VPLM}/versions/1"
        world = self._here.store.world
        request = storage_pb2.DownloadVersionRequest(name=name)
        parts = await world.call("StorageService.DownloadVersion", request, self._key)
        self._data = b"".join(part.chunk for part in parts)
        version = storage_pb2.GetVersionRequest(name=name)
        (found,) = await world.call("StorageService.GetVersion", version, self._key)
        self._spec.CopyFrom(found.spec)

    def fresh(self, way: str) -> tuple[str, Parts]:
        """A request that was not made before."""
        self._serial += 1
        return self.ways[way](f"made-{self._serial}")

    async def asked(self, rpc: str, request: Parts) -> resources_pb2.Vplm | None:
        """What the creator says that it has made; None where it does not say so."""
        store, creator = self._here.store, self._here.creator
        world = StorageWorld(creator.address, store.world.store, store.operator, store.service)
        try:
            (answer,) = await world.call(rpc, request, self._key)
        except SmileError:
            return None
        finally:
            await world.close()
        assert isinstance(answer, resources_pb2.Vplm)
        return answer

    async def made(self, rpc: str, request: Parts) -> resources_pb2.Vplm | None:
        """The vPLM, once the creator makes it, which it does within a while."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := await self.asked(rpc, request)) is None:
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(0.1)
        return found

    def _create(self, name: str) -> tuple[str, Parts]:
        return self._request(
            name,
            backbone="backbones/toy",
            pet=resources_pb2.PetSpec(kind=resources_pb2.PET_KIND_LORA, rank=2),
            head=HEAD,
        )

    def _copy(self, name: str) -> tuple[str, Parts]:
        return self._request(name, base=f"tenants/{TENANT}/vplms/{VPLM}")

    def _with_another_head(self, name: str) -> tuple[str, Parts]:
        return self._request(name, base=f"tenants/{TENANT}/vplms/{VPLM}/versions/1", head=HEAD)

    def _request(self, name: str, **fields: object) -> tuple[str, Parts]:
        made = creator_pb2.CreateVplmRequest(
            parent=f"tenants/{TENANT}",
            vplm_id=name,
            request_id=new_id(),
            **fields,  # type: ignore[arg-type]
        )
        return "CreatorService.CreateVplm", made

    def _import(self, name: str) -> tuple[str, Parts]:
        header = creator_pb2.ImportVplmHeader(
            parent=f"tenants/{TENANT}",
            vplm_id=name,
            spec=self._spec,
            size_bytes=len(self._data),
            digest=hashlib.sha256(self._data).hexdigest(),
            request_id=new_id(),
        )
        pieces = (
            self._data[start : start + PIECE_BYTES]
            for start in range(0, len(self._data), PIECE_BYTES)
        )
        return "CreatorService.ImportVplm", [
            creator_pb2.ImportVplmRequest(header=header),
            *(creator_pb2.ImportVplmRequest(chunk=piece) for piece in pieces),
        ]


async def killed_creator(here: Platform, selection: Selection, tally: Tally) -> None:
    """It dies at a step; the request is repeated at the one that comes after it."""
    making = Making(here)
    await making.look()
    async with timed(tally):
        for way in making.ways:
            count = await _steps(here, making, way)
            for at in numbered(selection, f"{tally.fault} {way}", count):
                if not await _struck(here, making, (way, at), tally) and at >= count:
                    break


async def _steps(here: Platform, making: Making, way: str) -> int:
    points = here.creator.points
    points.arm(Blow.COUNT)
    assert await making.made(*making.fresh(way)) is not None, f"{way}: cannot be made"
    points.disarm()
    return points.count


async def _struck(here: Platform, making: Making, blow: tuple[str, int], tally: Tally) -> bool:
    """Whether the blow fell."""
    (way, at), points = blow, here.creator.points
    rpc, request = making.fresh(way)
    before = here.store.judged()
    points.arm(Blow.KILL, at)
    answered = await making.asked(rpc, request)
    fell = points.struck
    where = note(tally, here.creator, at, way) if fell else way
    points.disarm()
    if not fell:
        tally.expect(answered is not None, f"{way}: refused, unharmed")
        return False
    tally.whole(answered is None, f"{where}: answered by the dead")
    await here.creator.dead()
    with contextlib.suppress(TimeoutError):
        await here.creator.start()
    dead = here.store.judged()
    made = await making.made(rpc, request)
    tally.expect(made is not None, f"{where}: repeated, it is refused")
    again = await making.made(rpc, request)
    tally.whole(made == again, f"{where}: made {made}, then {again}")
    compared(tally, where, (before, dead, here.store.judged()))
    return True
