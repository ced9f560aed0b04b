"""The services that training needs, as processes that can be struck, and the judge beside them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import smile
from smile.client.client import AsyncClient
from smile.model.toy import write_toy_backbone
from smile.resources import JobState, TrainingJob
from tests.faults.failpoints import Blow
from tests.faults.operations import TENANT
from tests.faults.processes import Child, Nursery, until
from tests.faults.redis_server import RedisServer, may_set_clocks
from tests.faults.small_disk import small_disk
from tests.faults.storing import Storage, storage
from tests.faults.tally import Tally

VPLM, DATASET = "mood", "texts"
LABELS = ("good", "bad")
ROWS = [{"text": f"a {label} day", "label": label} for label in LABELS] * 8
LEASE_S = "1"
EPOCHS = 3
BESIDE = ("probe/", "feed/")


@dataclass
class Platform:
    """Storage, creator and trainer; workers are borne by whoever needs them."""

    nursery: Nursery
    folder: Path
    store: Storage
    redis: RedisServer
    backbone: Path
    creator: Child
    trainer: Child
    client: AsyncClient = field(init=False)
    workers: list[Child] = field(default_factory=list)
    reference: str = ""  # digest of what a run that nothing disturbed makes
    curve: dict[tuple[str, int], float] = field(default_factory=dict)
    pattern: TrainingJob | None = None  # a job like all others
    versions: int = 1
    steps: int = 0  # of a worker with such a job
    store_steps: int = 0  # of storage meanwhile

    @property
    def worker_folder(self) -> Path:
        """Where workers keep rows and states."""
        return self.folder / "work"

    @property
    def worker_filler(self) -> Path:
        return self.worker_folder / "filler"

    def worker(self) -> Child:
        """A worker that is not borne yet."""
        made = Child(self.nursery, "worker", self.trainer.settings, self.folder, 0)
        self.workers.append(made)
        return made

    async def dismiss(self) -> None:
        """End all workers, whatever they do."""
        for worker in self.workers:
            await worker.close()
        self.workers.clear()

    async def train(self) -> TrainingJob:
        return await self.client.train(
            VPLM, DATASET, epochs=EPOCHS, batch_size=4, validation_ratio=0.25
        )

    def state(self, job: TrainingJob) -> str:
        """As the bucket has it."""
        return str(self._record(job)["state"])

    def _record(self, job: TrainingJob) -> dict[str, object]:
        stored = json.loads(self.store.bucket.read(f"{job.name}/record.json"))
        return dict(stored["record"]["job"])

    async def ended(self, job: TrainingJob) -> None:
        try:
            await until(lambda: self.state(job) not in ("queued", "running"), "a job's end")
        except TimeoutError as error:
            told = "\n".join(
                child.log.read_text()[-2000:] for child in (*self.workers, self.trainer)
            )
            raise AssertionError(f"{job.name} does not end:\n{told}") from error

    def kept_curve(self, job: TrainingJob) -> dict[tuple[str, int], float]:
        """By name and step."""
        lines = self.store.bucket.read(f"{job.name}/curve.jsonl").splitlines()[:-1]
        return {(row[0], row[2]): row[1] for line in lines for row in json.loads(line)}

    def snapshot(self) -> dict[str, str]:
        """The digest of every object, but for those that come and go beside everything."""
        bucket = self.store.bucket
        found = [key for key in bucket.list() if not key.startswith(BESIDE)]
        return {key: hashlib.sha256(bucket.read(key)).hexdigest() for key in found}

    async def learn(self) -> None:
        """What a job gives that nothing disturbs, and in how many steps; all others must give the
        same."""
        worker, store = self.worker(), self.store.child
        job = await self.train()
        for child in (worker, store):
            child.points.arm(Blow.COUNT)
        worker.bear()
        await self.ended(job)
        self.steps, self.store_steps = worker.points.count, store.points.count
        store.points.disarm()
        await self.dismiss()
        self.versions += 1
        self.reference = (await self.client.version(VPLM, self.versions)).digest
        self.curve, self.pattern = self.kept_curve(job), job
        assert len(self.curve) > EPOCHS
        assert min(self.steps, self.store_steps) > EPOCHS

    async def made_once(self, tally: Tally, where: str, *jobs: TrainingJob) -> None:
        """Each job has one result, the right one, visible, and nothing of it lies around. They are
        all that has ended since the last time; which of several was the last does not matter.
        """
        versions = [version async for version in self.client.versions(VPLM)]
        fresh = [each for each in versions if each.number > self.versions]
        self.versions = len(versions)
        told = sorted((each.training_job, each.digest) for each in fresh)
        right = sorted((job.name, self.reference) for job in jobs)
        tally.expect(told == right, f"{where}: new are {told}, not {right}")
        latest = await self.client.version(VPLM)
        served = latest.number in {each.number for each in fresh}
        tally.expect(served, f"{where}: serving is {latest.name}, which is none of these")
        for job in jobs:
            seen = await self.client.job(job)
            tally.expect(seen.state is JobState.SUCCEEDED, f"{where}: the job is {seen}")
            tally.expect(self.kept_curve(job) == self.curve, f"{where}: its curve is another")
            _, tenant, _, name = job.name.split("/")
            left = (f"{job.name}/checkpoints/", f"pendingJobs/{tenant}/{name}")
            await until(
                lambda left=left: (
                    not any(each.startswith(left) for each in self.store.bucket.list())
                ),  # type: ignore[misc]
                "what only a job that goes on needs to go",
            )
        verdict = self.store.judged()
        tally.checked += verdict.checked
        tally.torn += [f"{where}: {what}" for what in verdict.torn]


@asynccontextmanager
async def platform(
    nursery: Nursery, *, redis_on_small_disk: bool = False, worker_on_small_disk: bool = False
) -> AsyncIterator[Platform]:
    """A platform with a tenant, a vPLM and a dataset to train it on."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="sf")))
        store = await stack.enter_async_context(storage(nursery, folder))
        redis = RedisServer(folder / "redis")
        if redis_on_small_disk:
            stack.enter_context(small_disk(redis.data))
        if may_set_clocks():
            redis.clock_settable()
        stack.callback(redis.kill)
        redis.start()
        backbone = write_toy_backbone(folder / "toy")
        settings = {
            "PATH": "/usr/bin:/bin",
            "OMP_NUM_THREADS": "1",
            "SMILE_SERVICE_KEY": store.service,
            "SMILE_STORAGE_ADDRESS": store.child.address,
            "SMILE_BACKBONES": f"toy=dir:{backbone}",
            "SMILE_REDIS_URL": redis.url,
            "SMILE_LOG_LEVEL": "info",
            "SMILE_TRAINER_LEASE_S": LEASE_S,
            "SMILE_TRAINER_CHECKPOINT_S": "0",
            "SMILE_TRAINER_RECONCILE_S": "0.5",
            "SMILE_TRAINER_THREADS": "1",
            "SMILE_TRAINER_WORKERS": "0",
        }
        if worker_on_small_disk:
            stack.enter_context(small_disk(folder / "work"))
            settings["SMILE_TRAINER_FOLDER"] = str(folder / "work")
        creator = Child.listening(nursery, "creator", dict(settings), folder)
        trainer = Child.listening(nursery, "trainer", dict(settings), folder)
        for child in (creator, trainer):
            stack.push_async_callback(child.close)
            child.bear()
        made = Platform(nursery, folder, store, redis, backbone, creator, trainer)
        stack.push_async_callback(made.dismiss)
        for child in (creator, trainer):
            await child.ready()
        made.client = await stack.enter_async_context(client(made))
        await made.client.create_vplm(VPLM, backbone="toy", pet=smile.Pfeiffer(4), labels=LABELS)
        await made.client.upload_dataset(DATASET, ROWS)
        await made.learn()
        yield made


def client(here: Platform) -> AsyncClient:
    endpoints = ",".join(
        f"{child.role}={child.address}" for child in (here.store.child, here.creator, here.trainer)
    )
    return AsyncClient(here.store.world.keys[TENANT], endpoints=endpoints)
