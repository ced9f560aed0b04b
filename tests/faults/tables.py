"""Tables and local encoders whose makers are struck, and processors that tell rows and are."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from smile.errors import DataCorrupted, SmileError
from smile.model.backbone import Backbone
from smile.model.skip import artifact
from smile.model.toy import WORDS, write_toy_backbone
from smile.representations.snapshot import Table
from tests.contract.materialized_world import Encoder
from tests.faults.failpoints import Blow
from tests.faults.processes import Child, Nursery
from tests.faults.small_disk import mounted, unmounted
from tests.faults.tables_roles import ARGUMENTS, ROOT
from tests.faults.tally import Selection, Tally, numbered

TABLE_WHOLE = "a table is there whole or not at all; the same command again makes it, to the bit"
ENCODER_SAME = "a distillation that was killed goes on, and ends with the same weights"
TEXTS = tuple(" ".join(WORDS[start : start + 9]) for start in range(0, 150, 7))
DISTILL = {
    "boundary": "2", "first": "16", "middle": "16", "after": "8", "context": "4", "epochs": "2",
    "batch-tokens": "128", "threads": "1",
}  # fmt: skip
DISKS = ("size=32k", "size=56k", "size=64m,nr_inodes=2", "size=64m,nr_inodes=5")  # 54 KB needed
ATTEMPTS_MAX = 5


@dataclass(frozen=True)
class Workshop:
    """A toy backbone, a local encoder of it and a corpus; what is made lies below `made`."""

    nursery: Nursery
    folder: Path
    encoder: Encoder

    @classmethod
    def at(cls, nursery: Nursery, folder: Path) -> Workshop:
        backbone = Backbone.load(write_toy_backbone(folder / "toy"), "toy")
        (folder / "corpus.txt").write_text("\n".join(TEXTS))
        (folder / "made").mkdir()
        return cls(nursery, folder, Encoder.make(backbone, folder / "encoder.safetensors"))

    @property
    def made(self) -> Path:
        return self.folder / "made"

    @property
    def output(self) -> Path:
        return self.made / "made"

    def _source(self) -> str:
        return f"toy=dir:{self.folder / 'toy'}"

    def builder(self) -> Child:
        """`smile tables build`, not borne yet."""
        stated = {
            "backbone": self._source(),
            "encoder": str(self.encoder.path),
            "corpus": str(self.folder / "corpus.txt"),
            "budget-bytes": "100000000",
            "output": str(self.output),
        }
        return self._maker("builder", [f"--{name}={value}" for name, value in stated.items()])

    def distiller(self) -> Child:
        """`smile backbones distill`, not borne yet."""
        stated = {
            **DISTILL,
            "corpus": str(self.folder / "corpus.txt"),
            "output": str(self.output),
        }
        options = [f"--{name}={value}" for name, value in stated.items()]
        return self._maker("distiller", [self._source(), *options])

    def _maker(self, role: str, arguments: list[str]) -> Child:
        settings = {
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            ARGUMENTS: json.dumps(arguments),
            ROOT: str(self.made),
        }
        return Child(self.nursery, role, settings, self.folder, 0)

    def clear(self) -> None:
        """Nothing was made yet."""
        for path in sorted(self.made.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    @property
    def left(self) -> list[str]:
        """What lies there that nobody asked for."""
        asked = (self.output.name, f"{self.output.name}.curve.json")
        return sorted(path.name for path in self.made.iterdir() if path.name not in asked)

    def table(self) -> str:
        """The digest of the table, read whole; empty where there is none. Raises
        `DataCorrupted`."""
        if not self.output.exists():
            return ""
        return Table.open(self.output, self.encoder.stand_in.origin, verify=True).digest

    def weights(self) -> dict[str, bytes]:
        """Of the local encoder that was made; none where there is none. Raises `DataCorrupted`."""
        if not self.output.exists():
            return {}
        found = artifact.read(self.output).tensors
        return {name: tensor.tobytes() for name, tensor in found.items()}


@asynccontextmanager
async def workshop(nursery: Nursery) -> AsyncIterator[Workshop]:
    with TemporaryDirectory(prefix="sf") as folder:
        yield Workshop.at(nursery, Path(folder))


async def ended(child: Child, blow: Blow = Blow.NONE, at: int = 0) -> tuple[bool, str, str]:
    """A life of it: whether the blow fell, at which step, and its last words."""
    child.points.arm(blow, at) if blow is not Blow.NONE else child.points.disarm()
    child.log.write_text("")
    child.bear()
    await child.dead()
    steps = child.points.steps()
    step = steps[at - 1] if 0 < at <= len(steps) else ""
    lines = child.log.read_text().splitlines()
    return child.points.struck, step, lines[-1] if lines else ""


async def struck_builders(nursery: Nursery, blow: Blow, selection: Selection, tally: Tally) -> None:
    """A build struck at its steps, and begun again."""
    began = time.monotonic()
    async with workshop(nursery) as shop:
        child = shop.builder()
        await ended(child, Blow.COUNT)
        reference, count = shop.table(), child.points.count
        assert reference and count > 5, child.log.read_text()
        for at in numbered(selection, tally.fault, count):
            shop.clear()
            fell, step, told = await ended(child, blow, at)
            if not fell:
                break
            tally.faults += 1
            tally.steps[_kind(step)] += 1
            await _built_again(shop, child, reference, tally, f"{blow.name} at {at} ({step})", told)
        await child.close()
    tally.seconds += time.monotonic() - began


async def _built_again(
    shop: Workshop, child: Child, reference: str, tally: Tally, where: str, told: str
) -> None:
    try:
        seen = shop.table()
    except DataCorrupted as error:
        tally.whole(False, f"{where}: a torn table: {error}")
        shop.clear()
        seen = ""
    tally.whole(seen in ("", reference), f"{where}: another table: {seen}")
    if "KILL" not in where:
        tally.whole('"error"' in told or seen == reference, f"{where}: it said {told}")
        tally.whole(shop.left == [], f"{where}: left {shop.left}")
    if seen == "":
        _, _, told = await ended(child)
        tally.expect('"result"' in told, f"{where}: again, it says {told}")
    tally.expect(shop.table() == reference, f"{where}: not the table that was to be")
    tally.whole(shop.left == [] or seen == reference, f"{where}: still left {shop.left}")


async def full_disks(nursery: Nursery, tally: Tally) -> None:
    """Builds on a file system that is too small from the start, or runs out of files amid them."""
    began = time.monotonic()
    async with workshop(nursery) as shop:
        child = shop.builder()
        await ended(child)
        reference = shop.table()
        for options in DISKS:
            shop.clear()
            assert mounted(shop.made, options)
            try:
                _, _, told = await ended(child)
                tally.faults += 1
                tally.steps[options] += 1
                tally.whole("DISK_FULL" in told, f"{options}: it said {told}")
                left = sorted(path.name for path in shop.made.iterdir())
                tally.whole(left == [], f"{options}: left {left}")
                assert mounted(shop.made, "remount,size=64m,nr_inodes=1k")
                _, _, told = await ended(child)
                tally.expect(shop.table() == reference, f"{options}: with room, it said {told}")
            finally:
                unmounted(shop.made)
        await child.close()
    tally.seconds += time.monotonic() - began


async def killed_distillers(nursery: Nursery, selection: Selection, tally: Tally) -> None:
    """A distillation killed at its steps, several times each, and begun again."""
    began = time.monotonic()
    async with workshop(nursery) as shop:
        child = shop.distiller()
        await ended(child, Blow.COUNT)
        reference, count = shop.weights(), child.points.count
        assert reference and count > 5, child.log.read_text()
        for at in numbered(selection, tally.fault, count):
            shop.clear()
            for _ in range(ATTEMPTS_MAX):
                fell, step, _ = await ended(child, Blow.KILL, at)
                if not fell:
                    break
                tally.faults += 1
                tally.steps[_kind(step)] += 1
                seen = _weights_if_whole(shop, tally, f"KILL at {at} ({step})")
                tally.whole(seen in ({}, reference), f"KILL at {at} ({step}): other weights")
            if shop.weights() != reference:
                _, _, told = await ended(child)
                tally.expect('"result"' in told, f"KILL at {at}: again, it says {told}")
                tally.whole(shop.left == [], f"KILL at {at}: left {shop.left}")
            tally.expect(shop.weights() == reference, f"KILL at {at}: other weights at the end")
        await child.close()
    tally.seconds += time.monotonic() - began


def _weights_if_whole(shop: Workshop, tally: Tally, where: str) -> dict[str, bytes]:
    try:
        return shop.weights()
    except SmileError as error:
        tally.whole(False, f"{where}: a torn encoder: {error}")
        return {}


def _kind(step: str) -> str:
    """A step without the parts of names that differ from run to run."""
    verb, _, path = step.rpartition(" ")
    return f"{verb} {'/'.join('*' if part[:1] == '.' else part for part in path.split('/'))}"
