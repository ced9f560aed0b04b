"""What a tenant has of everything, made through the SDK."""

from __future__ import annotations

import pathlib
import tempfile
from dataclasses import dataclass, field

import smile
from smile import codec
from smile.client.client import AsyncClient
from smile.v1 import resources_pb2
from tests.contract.platform_world import Platform

LABELS = ("good", "bad")
ROWS = b"text,label\n" + b"".join(
    f"{word} day {n},{label}\n".encode()
    for n in range(6)
    for word, label in (("happy", "good"), ("sad", "bad"))
)


@dataclass
class Belongings:
    """What a tenant has: two of all that is listed, and of all that can be destroyed one more."""

    tenant: str
    key: str
    jobs: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    spec: resources_pb2.ModuleSpec = field(default_factory=resources_pb2.ModuleSpec)

    @property
    def parent(self) -> str:
        return f"tenants/{self.tenant}"

    def vplm(self, name: str = "topic") -> str:
        return f"{self.parent}/vplms/{name}"

    def processor(self, name: str = "topic") -> str:
        return f"{self.parent}/processors/{name}"

    def dataset(self, name: str = "rows") -> str:
        return f"{self.parent}/datasets/{name}"


async def furnish(platform: Platform, tenant: str) -> Belongings:
    """Make a tenant's belongings, through the SDK."""
    own = Belongings(tenant, platform.keys.get(tenant) or await platform.add_tenant(tenant))
    async with platform.client(tenant) as client:
        for seed, name in enumerate(("topic", "second", "doomed")):
            made = await client.create_vplm(
                name, backbone="toy", pet=smile.Pfeiffer(rank=4), labels=LABELS, seed=seed
            )
        own.spec.CopyFrom(codec.spec_to_pb(made.spec))
        await _more_versions(client)
        await client.create_vplm("gone", backbone="toy", pet=smile.Pfeiffer(rank=4), labels=LABELS)
        await client.delete_vplm("gone")
        for name in ("rows", "more", "doomed"):
            await client.upload_dataset(name, _rows())
        own.jobs = [(await client.train("topic", "rows", epochs=1)).name for _ in range(3)]
        await client.cancel(own.jobs[2])
        own.keys = [(await client.create_key(f"key {n}")).api_key.name for n in range(2)]
        await client.infer("topic", "a good day")
        for name in ("topic", "second", "doomed"):
            await client.rent(name, wait=True)
    return own


async def stock(platform: Platform, own: Belongings) -> None:
    """Fill the shelf that all tenants share, from one tenant's vPLM."""
    async with platform.client(own.tenant) as client:
        await client.set_alias("topic", "public", 1)
    async with platform.operator() as operator:
        for name in ("general", "other"):
            await operator.publish_version(name, f"{own.vplm()}/versions/1", license="MIT")


def _rows() -> list[dict[str, str]]:
    lines = ROWS.decode().splitlines()[1:]
    return [dict(zip(("text", "label"), line.split(","), strict=True)) for line in lines]


async def _more_versions(client: AsyncClient) -> None:
    """Versions 2 and 3, a deleted 4, and an alias with a past."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "w.safetensors"
        await client.download_version("topic", path)
        for _ in range(3):
            await client.upload_version("topic", path)
    await client.delete_version("topic", 4)
    for version in (1, 2, 1, 2, 1, 2):
        await client.set_alias("topic", "moved", version)
