"""Storage struck at every step of everything that changes something."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from smile.errors import SmileError
from smile.rpc.keys import KeyKind, KeyParts, new_key
from smile.store.objects import open_store
from smile.v1 import datasets_pb2, storage_pb2
from tests.contract.storage_world import StorageWorld
from tests.faults.failpoints import Blow
from tests.faults.judge import Bucket, Folder, Judge, Verdict
from tests.faults.operations import ALL, OPERATIONS, TENANT, Change
from tests.faults.processes import Child, Nursery
from tests.faults.tally import Selection, Tally, numbered

WHOLE = "what storage acknowledged is there, nothing torn is visible, repeating completes"


@dataclass
class Storage:
    """A storage process that is struck, over a bucket that the judge reads too."""

    nursery: Nursery
    folder: Path
    bucket: Bucket
    settings: dict[str, str]
    child: Child = field(init=False)
    world: StorageWorld = field(init=False)
    operator: str = field(default_factory=lambda: new_key(KeyKind.OPERATOR).text)
    service: str = field(default_factory=lambda: new_key(KeyKind.SERVICE).text)
    serial: int = 0

    def __post_init__(self) -> None:
        self.child = self.another()

    def another(self) -> Child:
        """One more process over the same bucket."""
        variables = {
            "SMILE_SERVICE_KEY": self.service,
            "SMILE_STORAGE_OPERATOR_KEY_SHA256": KeyParts.parse(self.operator).secret_sha256,
            "SMILE_LOG_LEVEL": "warning",
            **self.settings,
        }
        return Child.listening(self.nursery, "storage", variables, self.folder)

    async def start(self) -> None:
        await self.child.start()
        self.world = self.asking(self.child)

    def asking(self, child: Child) -> StorageWorld:
        return StorageWorld(child.address, open_store("memory://"), self.operator, self.service)

    async def restart(self) -> None:
        """A new process in the old one's place, which is dead."""
        keys = self.world.keys
        await self.world.close()
        await self.start()
        self.world.keys.update(keys)

    async def close(self) -> None:
        await self.world.close()
        await self.child.close()

    def judged(self) -> Verdict:
        return Judge(self.bucket).judge()

    async def fresh(self, operation: str) -> Change:
        """The operation on something new, all it stands on made."""
        self.serial += 1
        return await ALL[operation](self.world, f"n{self.serial}")


@asynccontextmanager
async def storage(
    nursery: Nursery, folder: Path, bucket: Bucket | None = None, **settings: str
) -> AsyncIterator[Storage]:
    """Storage with a tenant; over a directory of `folder` where nothing else is asked for."""
    objects = folder / "objects"
    made = Storage(
        nursery,
        folder,
        bucket or Folder(objects),
        {"SMILE_STORAGE_URL": f"file://{objects}", **settings},
    )
    await made.start()
    try:
        await made.world.create_tenant(TENANT)
        yield made
    finally:
        await made.close()


async def struck(here: Storage, operation: str, tally: Tally, blow: Blow, at: int) -> bool:
    """One blow at one step of one operation, all that must hold after it; whether it fell."""
    change = await here.fresh(operation)
    before = here.judged()
    points = here.child.points
    points.arm(blow, at)
    failed: SmileError | None = None
    try:
        await change.send(here.world)
    except SmileError as error:
        failed = error
    fell = points.struck
    steps = points.steps()
    points.disarm()
    if not fell:
        assert failed is None, failed
        return False
    tally.faults += 1
    tally.steps[f"{operation}: {kind_of(steps[at - 1])}"] += 1
    where = f"{operation}, {blow.name} at step {at} ({steps[at - 1]})"
    if blow is Blow.KILL:
        tally.whole(failed is not None, f"{where}: answered by the dead")
        await here.child.dead()
    dead = here.judged()
    if not here.child.alive:
        await here.restart()
    await repeated(here, change, tally, where)
    compared(tally, where, (before, dead, here.judged()))
    return True


async def repeated(here: Storage, change: Change, tally: Tally, where: str) -> None:
    """The same request again must succeed, at once but for a machine that is slow."""
    try:
        await change.done(here.world)
    except SmileError as error:
        tally.whole(False, f"{where}: repeated, it fails: {error!r}")


def compared(tally: Tally, where: str, verdicts: tuple[Verdict, Verdict, Verdict]) -> None:
    """Before the blow, after it, and after the operation was repeated: what was there is there, and
    in between nothing was visible that is neither the old nor the new."""
    before, dead, after = verdicts
    for verdict in (dead, after):
        tally.checked += verdict.checked
        tally.torn += [f"{where}: {what}" for what in verdict.torn]
    for name in before.whole.keys() | dead.whole.keys() | after.whole.keys():
        old, now, new = (verdict.whole.get(name) for verdict in verdicts)
        if old == new:
            tally.expect(now == old, f"{where}: {name} was {now} for a while")
        else:
            tally.whole(now in (old, new), f"{where}: {name} is {now}, neither {old} nor {new}")


async def everything_told(here: Storage, tally: Tally) -> None:
    """All that the judge sees is what storage tells, bytes included."""
    for name, digest in here.judged().whole.items():
        key = here.world.keys.get(name.split("/")[1])
        if key is None:
            continue
        try:
            told = await _told(here.world, name, key)
        except SmileError as error:
            tally.expect(False, f"{name}: {error!r}")
        else:
            tally.expect(told in (None, digest), f"{name} is {told}, not {digest}")


async def _told(world: StorageWorld, name: str, key: str) -> str | None:
    """The digest of a version's or a dataset's bytes as they come; None for other things."""
    if "/versions/" in name:
        version = storage_pb2.DownloadVersionRequest(name=name)
        parts = await world.call("StorageService.DownloadVersion", version, key)
    elif "/datasets/" in name:
        dataset = datasets_pb2.DownloadDatasetRequest(name=name)
        parts = await world.call("DatasetService.DownloadDataset", dataset, key)
    else:
        return None
    return hashlib.sha256(b"".join(part.chunk for part in parts)).hexdigest()


async def steps_of(here: Storage, operation: str, blow: Blow) -> int:
    """How many steps it takes when nothing goes wrong."""
    change = await here.fresh(operation)
    here.child.points.arm(blow)
    await change.done(here.world)
    count = here.child.points.count
    here.child.points.disarm()
    assert count > 0, f"{operation} takes no steps"
    return count


async def at_every_step(here: Storage, blow: Blow, selection: Selection, tally: Tally) -> None:
    """Strike each operation at the selected steps."""
    began = time.monotonic()
    for operation in OPERATIONS:
        what = f"{tally.fault} {operation}"
        count = await steps_of(here, operation, blow)
        for at in numbered(selection, what, count):
            if not await struck(here, operation, tally, blow, at) and at >= count:
                break
    await everything_told(here, tally)
    tally.seconds += time.monotonic() - began


def kind_of(step: str) -> str:
    """A step without the names that differ from run to run."""
    verb, _, path = step.rpartition(" ")
    return f"{verb} {'/'.join(_part(part) for part in path.split('/'))}"


def _part(part: str) -> str:
    whole = part.partition(".")[0]
    hexes = len(whole) >= 20 and all(letter in "0123456789abcdef-" for letter in whole)
    return "*" if hexes or (part[:1] == "n" and part[1:].isdigit()) else part
