"""What a tenant's model takes to keep, and how fast models are made, put and fetched.

Sizes are what lies in the object store afterwards, file by file: module and head, manifest, record.
The full model beside them is the backbone's own weights file. MiniLM is the real one; BERT-base has
BERT-base's shape and random weights, which changes no size. The headline at BERT-base is the layout
of the SMILE prototype: one bottleneck of 64 in each of the upper six layers.

Throughput is through client, gRPC, creator and storage, over a directory (as `smile up` has it,
every write flushed to the disk) and over S3: a server named by `SMILE_BENCH_S3_ENDPOINT`,
`_ACCESS_KEY` and `_SECRET_KEY`, else moto's, which is a test double and slow.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import boto3

import smile
from benchmarks.harness.appliance import Appliance, Store, appliance
from benchmarks.harness.command import Run, script
from benchmarks.harness.json_types import Figures, Json
from smile import AsyncClient
from smile.backbone_config import BACKBONES_DEFAULT
from smile.model.checkpoint import WEIGHTS_FILE
from smile.model.sources import parse_sources
from smile.model.specs import PetSpec

MINILM, BERT_BASE = "minilm", "bert-base"
LABELS = ("business", "entertainment", "politics", "sport", "tech")
HEADLINE = "pfeiffer-64-upper-half"
CREATORS = 8  # calls at a time
CREATE_S_MAX = 300.0
BUCKET = "smile-bench"
SHAPES: Mapping[str, Callable[[int], PetSpec]] = {
    HEADLINE: lambda layers: smile.Pfeiffer(64, first_layer=layers // 2),
    "pfeiffer-16": lambda layers: smile.Pfeiffer(16),
    "pfeiffer-24": lambda layers: smile.Pfeiffer(24),
    "pfeiffer-64-all-layers": lambda layers: smile.Pfeiffer(64, first_layer=0),
    "houlsby-16": lambda layers: smile.Houlsby(16),
    "houlsby-64": lambda layers: smile.Houlsby(64),
    "lora-4": lambda layers: smile.LoRA(4),
    "lora-8": lambda layers: smile.LoRA(8),
    "lora-16-all-layers": lambda layers: smile.LoRA(16, first_layer=0),
    "bitfit": lambda layers: smile.BitFit(),
    "diff-pruning-0.5-percent": lambda layers: smile.DiffPruning(0.005),
    "mask-bert-5-percent": lambda layers: smile.MaskBert(0.05),
    "head-alone": lambda layers: smile.NoPet(),
}


@dataclass(frozen=True, slots=True)
class Backbones:
    """Where the backbones are, and what a full copy of each takes."""

    config: str
    bytes: Mapping[str, int]
    layers: Mapping[str, int]


def measure(run: Run) -> Figures:
    """The keys of the claim."""
    with tempfile.TemporaryDirectory(prefix="smile-bench-") as folder:
        place = Path(folder)
        run.say("writing a backbone of BERT-base's shape")
        backbones = _backbones(place)
        objects = place / "objects"
        directory = Store(objects.as_uri(), {})
        with appliance(directory, backbones.config, place) as running:
            sizes = asyncio.run(_sizes(run, running, backbones, objects))
            found = asyncio.run(_speeds(run, running, run.choose(1_000, 100), place))
        with _s3() as (what, store), appliance(store, BACKBONES_DEFAULT, place) as running:
            remote = asyncio.run(_speeds(run, running, run.choose(200, 40), place))
    headline = sizes[BERT_BASE][HEADLINE]
    return {
        "bytes_per_vplm_bert_base": headline,
        "saving": 1.0 - headline / backbones.bytes[BERT_BASE],
        "create_per_second": found["create_per_second"],
        **{f"{key}_directory": value for key, value in found.items()},
        "s3_server": what,
        **{f"{key}_s3": value for key, value in remote.items()},
        "full_model_bytes": dict(backbones.bytes),
        "bytes": {name: dict(each) for name, each in sizes.items()},
    }


def _backbones(folder: Path) -> Backbones:
    from transformers import BertConfig, BertModel  # noqa: PLC0415 -- seconds
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415 -- likewise

    disable_progress_bar()  # type: ignore[no-untyped-call]
    (minilm,) = parse_sources(BACKBONES_DEFAULT)
    there = minilm.locate()
    made = folder / BERT_BASE
    config = BertConfig()
    BertModel(config).save_pretrained(made, safe_serialization=True)
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        if (there / name).exists():
            shutil.copy(there / name, made / name)
    return Backbones(
        f"{BACKBONES_DEFAULT},{BERT_BASE}=dir:{made}",
        {
            name: (path / WEIGHTS_FILE).stat().st_size
            for name, path in ((MINILM, there), (BERT_BASE, made))
        },
        {MINILM: 6, BERT_BASE: config.num_hidden_layers},
    )


async def _sizes(
    run: Run, running: Appliance, backbones: Backbones, objects: Path
) -> dict[str, dict[str, int]]:
    """Bytes that one vPLM adds to the object store, by backbone and shape."""
    found: dict[str, dict[str, int]] = {name: {} for name in backbones.bytes}
    async with _tenant(running) as client:
        with run.steps("one vPLM of each shape", len(SHAPES) * len(found)) as done:
            for backbone, sizes in found.items():
                for shape, pet in SHAPES.items():
                    before = _stored(objects)
                    name = f"{backbone}-{shape}".replace(".", "-")
                    chosen = pet(backbones.layers[backbone])
                    await client.create_vplm(name, backbone=backbone, pet=chosen, labels=LABELS)
                    sizes[shape] = _stored(objects) - before
                    done()
    return found


async def _speeds(run: Run, running: Appliance, count: int, folder: Path) -> dict[str, Json]:
    """vPLMs created a second, versions put and fetched a second, and how long one call takes."""
    async with _tenant(running) as client:
        file = folder / f"module-{uuid.uuid4().hex}.safetensors"
        await client.create_vplm("first", backbone=MINILM, pet=smile.Pfeiffer(), labels=LABELS)
        version = await client.download_version("first", file)

        async def create(number: int) -> None:
            name, pet = f"vplm-{number}", smile.Pfeiffer()
            await client.create_vplm(name, backbone=MINILM, pet=pet, labels=LABELS, seed=number + 1)

        async def put(number: int) -> None:
            await client.upload_version(f"vplm-{number}", file)

        async def get(number: int) -> None:
            target = folder / f"fetched-{number}"
            await client.download_version(f"vplm-{number}", target)
            assert target.stat().st_size == version.size_bytes, "all of it"
            target.unlink()

        found: dict[str, Json] = {"module_bytes": version.size_bytes}
        for what, act in (("create", create), ("put", put), ("get", get)):
            async with run.phase(f"{what} {count}", count, CREATE_S_MAX) as done:
                per_s, took_ms = await _at_once(count, act, done)
            found[f"{what}_per_second"] = per_s
            found[f"{what}_ms"] = took_ms
    return found


async def _at_once(
    count: int, act: Callable[[int], Awaitable[None]], done: Callable[[], None]
) -> tuple[float, float]:
    """Acts a second with `CREATORS` at a time, and the median milliseconds of one."""
    took_ms: list[float] = []
    limit = asyncio.Semaphore(CREATORS)

    async def one(number: int) -> None:
        async with limit:
            started = time.perf_counter()
            await act(number)
            took_ms.append((time.perf_counter() - started) * 1e3)
            done()

    started = time.perf_counter()
    await asyncio.gather(*(one(number) for number in range(count)))
    return count / (time.perf_counter() - started), median(took_ms)


@asynccontextmanager
async def _tenant(running: Appliance) -> AsyncIterator[AsyncClient]:
    """A client of a new tenant."""
    async with running.client(running.operator_key) as operator:
        made = await operator.create_tenant(f"bench-{uuid.uuid4().hex[:8]}")
    async with running.client(made.key) as client:
        yield client


def _stored(objects: Path) -> int:
    return sum(path.stat().st_size for path in objects.rglob("*") if path.is_file())


@contextmanager
def _s3() -> Iterator[tuple[str, Store]]:
    """What the server is called, and a new bucket on it."""
    from moto.server import ThreadedMotoServer  # noqa: PLC0415 -- a second

    endpoint = os.environ.get("SMILE_BENCH_S3_ENDPOINT")
    access = os.environ.get("SMILE_BENCH_S3_ACCESS_KEY", "bench")
    secret = os.environ.get("SMILE_BENCH_S3_SECRET_KEY", hashlib.sha256(b"bench").hexdigest())
    server = None
    if endpoint is None:
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
    bucket = f"{BUCKET}-{uuid.uuid4().hex[:8]}"
    try:
        s3 = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=access,
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )
        s3.create_bucket(Bucket=bucket)
        settings = {
            "SMILE_STORAGE_S3_ENDPOINT": endpoint,
            "SMILE_STORAGE_S3_ACCESS_KEY": access,
            "SMILE_STORAGE_S3_SECRET_KEY": secret,
        }
        yield ("moto" if server else endpoint), Store(f"s3://{bucket}", settings)
    finally:
        if server is not None:
            server.stop()


if __name__ == "__main__":
    script("storage", measure)
