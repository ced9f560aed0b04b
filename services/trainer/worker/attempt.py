"""The work of one attempt at a job, up to the trained weights."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from services.trainer.backbones import Backbones
from services.trainer.data.rows import ReadDataset, RowSchema, read_dataset
from services.trainer.standins import StandIn, StandIns
from services.trainer.storage import Storage
from services.trainer.training.loop import Training
from services.trainer.training.loop_events import EpochDone, Planned, StepDone
from services.trainer.training.lowering import late_lowering, lowering
from services.trainer.training.precision import Precision
from services.trainer.training.run import LossNotFinite, Trained, TrainingInput
from services.trainer.training.states import DiskFull, MakeLower, StatesRoom
from services.trainer.whole import FullLimits, Needs, check_fits, spec_of
from services.trainer.worker.bookmark import Bookmark
from services.trainer.worker.failures import JobFailure, dataset_invalid, disk_full, loss_not_finite
from services.trainer.worker.memory import release_free_memory
from services.trainer.worker.patience import patiently
from services.trainer.worker.provenance import RunSpec, environment
from services.trainer.worker.report import Report, Stopped
from smile.errors import FailedPrecondition
from smile.limits import MIB
from smile.logs import get_logger
from smile.model import weights
from smile.model.backbone import Backbone
from smile.model.specs import BackboneShape, ModuleSpec
from smile.names import DatasetName, VersionName, VplmName
from smile.resources import Method, TrainingJob, TrainingStates, TrainingSummary, Vplm

CURVE_POINTS_MAX = 1_000_000  # storage keeps no longer curve
POINTS_PER_STEP = 2
POINTS_PER_EPOCH = 4

Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Workshop:
    """What attempts of one worker share.

    Attributes:
        folder: Where datasets lie while they are read; None means the system's choice.
        states_bytes_max: Memory for texts' states kept between epochs.
        checkpoint_s: How often a job's place is kept.
        states_disk_bytes_max: Disk for those that memory does not hold, in `folder`.
        precision: In what the frozen weights compute.
        stand_ins: For lower layers, where a job asks for them.
        full: What whole models may have.
        shared_bytes_max: Largest datasets of a job that shares its worker with others.
    """

    storage: Storage
    backbones: Backbones[Backbone]
    folder: Path | None
    states_bytes_max: int
    checkpoint_s: float = 30.0
    states_disk_bytes_max: int = 0
    precision: Precision = Precision.FLOAT32
    stand_ins: StandIns = field(default_factory=StandIns)
    full: FullLimits = field(default_factory=FullLimits)
    shared_bytes_max: int = 16 * MIB

    @property
    def room(self) -> StatesRoom:
        return StatesRoom(self.states_bytes_max, self.states_disk_bytes_max, self.folder)


@dataclass(frozen=True, slots=True)
class _JobRows:
    """A job's rows, with the SHA-256 of their datasets; without `validation`, a share of
    `training` is drawn."""

    training_digest: str
    training: ReadDataset
    validation_digest: str = ""
    validation: ReadDataset | None = None


class Attempt:
    """One attempt at `job`; what it says goes to `report`, where it is to `bookmark`."""

    def __init__(
        self, shop: Workshop, job: TrainingJob, report: Report, bookmark: Bookmark
    ) -> None:
        self._shop = shop
        self._storage = shop.storage
        self._job = job
        self._report = report
        self._bookmark = bookmark

    async def train(self, vplm: Vplm) -> Trained:
        """The weights, and what was measured with them.

        Raises:
            JobFailure: the job cannot succeed as it is.
            NotFound, FailedPrecondition, DataCorrupted: what it needs is gone or does not fit.
            Stopped: the holder asked for the end.
        """
        with TemporaryDirectory(dir=self._shop.folder, prefix="smile-job-") as folder:
            rows = await self._read(vplm, Path(folder))
        self._report.phase("loading")
        module = spec_of(self._job, vplm.spec)
        backbone = await self._in_thread(
            lambda: self._shop.backbones.of(vplm.spec, lambda found: found.digest)
        )
        self._check_memory(module, backbone.shape)
        base = await self._base(vplm)
        stand_in = await self._stand_in(vplm.spec)
        spec = self._spec(module, rows, base, stand_in)
        precision = self._shop.precision
        given = TrainingInput(
            backbone=backbone,
            spec=module,
            values=self._job.hyper_parameters,
            examples=rows.training.examples,
            validation=None if rows.validation is None else rows.validation.examples,
            tensors=None if base is None else weights.decode(base, module, backbone.shape),
            room=self._shop.room,
            precision=precision,
            lower=self._lower(stand_in, vplm.spec, backbone),
        )
        found = await patiently(lambda: self._bookmark.find(spec.digest))
        if found is not None:
            given = replace(given, resume=found.snapshot)
        loop = asyncio.get_running_loop()
        trained = await self._in_thread(lambda: self._trained(given, loop))
        if trained.unmeasured is not None:
            self._tell_unmeasured(trained.unmeasured)
        return replace(
            trained,
            metrics={**trained.metrics, "train_seconds": self._bookmark.seconds},
            summary=replace(
                _told(trained.summary, stand_in),
                spec_digest=spec.digest,
                environment=environment(self._shop.states_bytes_max, precision),
            ),
        )

    async def _read(self, vplm: Vplm, folder: Path) -> _JobRows:
        schema = RowSchema(vplm.spec.head, self._job.columns)
        digest, training = await self._read_one(self._job.dataset, schema, folder / "training")
        if not self._job.validation_dataset:
            return _JobRows(digest, training)
        head = replace(schema.head, labels=training.labels) if schema.head.labels else schema.head
        schema = RowSchema(head, self._job.columns, training=False)
        name = self._job.validation_dataset
        return _JobRows(
            digest, training, *await self._read_one(name, schema, folder / "validation")
        )

    async def _read_one(
        self, dataset: str, schema: RowSchema, path: Path
    ) -> tuple[str, ReadDataset]:
        self._report.phase("loading")
        name = DatasetName.parse(dataset)
        found = await patiently(lambda: self._storage.download_dataset(name, path))
        self._report.phase("validating")
        read = await self._in_thread(lambda: read_dataset(path, found.format, schema))
        if not read.valid:
            raise dataset_invalid(dataset, read.report)
        return found.digest, read

    async def _base(self, vplm: Vplm) -> bytes | None:
        """The version to start from."""
        if not self._job.base_version:
            return None
        name = VersionName(VplmName.parse(vplm.name), self._job.base_version)
        _, data = await patiently(lambda: self._storage.download_version(name))
        return data

    async def _stand_in(self, spec: ModuleSpec) -> StandIn | None:
        """For the lower layers; exact states do without."""
        if self._job.hyper_parameters.states is TrainingStates.EXACT:
            return None
        return await patiently(lambda: self._in_thread(lambda: self._shop.stand_ins.of(spec)))

    def _lower(
        self, stand_in: StandIn | None, spec: ModuleSpec, backbone: Backbone
    ) -> MakeLower | None:
        """What states are made by; for a job on exact ones, what tells at its end how the module
        does on others. A whole model is never answered so."""
        stand_ins, precision = self._shop.stand_ins, self._shop.precision
        if stand_in is not None:
            return lowering(stand_in, backbone, precision)
        if self._job.method is Method.FULL or spec.backbone not in stand_ins:
            return None
        return late_lowering(lambda: stand_ins.glance(spec), backbone, precision)

    def _spec(
        self, module: ModuleSpec, rows: _JobRows, base: bytes | None, stand_in: StandIn | None
    ) -> RunSpec:
        encoder, domain = "", None
        if stand_in is not None:
            encoder, domain = f"{stand_in.encoder.digest}:{stand_in.dtype}", stand_in.domain
        return RunSpec(
            module=module,
            columns=self._job.columns,
            values=self._job.hyper_parameters,
            dataset=rows.training_digest,
            validation=rows.validation_digest,
            base="" if base is None else weights.sha256_hex(base),
            encoder=encoder,
            domain="" if domain is None else domain.digest,
        )

    def _check_memory(self, module: ModuleSpec, shape: BackboneShape) -> None:
        """Raises `FailedPrecondition` where a whole model does not fit this worker."""
        if self._job.method is Method.FULL:
            needs = Needs.of(module, shape, self._job.hyper_parameters)
            check_fits(needs, self._shop.full)

    def _trained(self, given: TrainingInput, loop: asyncio.AbstractEventLoop) -> Trained:
        """In a thread: runs the training to its end, or to `Stopped`."""
        training = Training(given)
        run = training.events()
        try:
            while True:
                event = next(run)
                if isinstance(event, Planned):
                    self._check_plan(event)
                if isinstance(event, Planned | EpochDone):
                    release_free_memory()
                self._report.hear(event)
                if isinstance(event, StepDone):
                    self._bookmark.turn(training, loop)
        except Stopped:
            self._bookmark.stop(training)
            raise
        except StopIteration as end:
            trained: Trained = end.value
            return trained
        except LossNotFinite as error:
            raise loss_not_finite(str(error)) from error
        except DiskFull as error:
            raise disk_full(str(error)) from error
        finally:
            run.close()

    def _tell_unmeasured(self, error: Exception) -> None:
        """That a module or a domain is not for what stands in here is nothing to mend."""
        log = get_logger().bind(job=self._job.name, why=str(error))
        tell = log.info if isinstance(error, FailedPrecondition) else log.warning
        tell("metrics on the other kind of states are left out")

    def _check_plan(self, plan: Planned) -> None:
        if plan.texts_kept < plan.texts and self._job.method is not Method.FULL:
            get_logger().info(
                "states do not all fit", job=self._job.name, texts=plan.texts, kept=plan.texts_kept
            )
        points = plan.steps_total * POINTS_PER_STEP + plan.epochs_total * POINTS_PER_EPOCH
        if points > CURVE_POINTS_MAX:
            raise JobFailure(
                "TOO_MANY_STEPS",
                f"{plan.epochs_total} epochs of {plan.training_rows} rows are {plan.steps_total} "
                f"steps, whose curve has {points} points; at most {CURVE_POINTS_MAX} are kept. "
                "Use a larger batch_size or fewer epochs",
            )

    async def _in_thread(self, work: Callable[[], Done]) -> Done:
        """Runs `work` beside the event loop. Cancelled, it stops the work and waits for its end."""
        running = asyncio.get_running_loop().run_in_executor(None, work)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._report.stop.set()
            await asyncio.wait([running])
            if not running.cancelled():
                running.exception()  # taken: what it raised on the way out is of no interest
            raise


def _told(summary: TrainingSummary, stand_in: StandIn | None) -> TrainingSummary:
    """What stood below the first layer, for whoever asks the version."""
    if stand_in is None:
        return summary
    domain = stand_in.domain
    return replace(
        summary,
        encoder_digest=stand_in.encoder.digest,
        domain="" if domain is None else domain.name,
        domain_digest="" if domain is None else domain.digest,
    )
