"""What differs between two versions: what is said of them, and every number of theirs."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator, Mapping

from services.storage import keys
from services.storage.blobs import ByteBudget
from services.storage.documents import Documents
from services.storage.records import JobRecord
from services.storage.versions import Versions
from smile.errors import DataCorrupted
from smile.model.difference import Difference, StoredModule, difference
from smile.model.specs import BackboneShape, ModuleSpec
from smile.names import JobName, VersionName
from smile.resources import FieldChange, MetricPair, TrainingJob, VersionDiff, VplmVersion
from smile.store.objects import ObjectStore

_ABSENT = ""


class Diffs:
    """Compares versions, of one vPLM or of two."""

    def __init__(self, store: ObjectStore, versions: Versions, budget: ByteBudget) -> None:
        self._documents = Documents(store)
        self._versions = versions
        self._budget = budget

    async def between(self, base: VersionName, other: VersionName) -> VersionDiff:
        """From `base` to `other`.

        Raises:
            NotFound: there is no such version.
            DataCorrupted: the stored bytes of one are not what they were.
            Overloaded: too many bytes are held in memory now.
        """
        (first, shape), (second, other_shape) = await asyncio.gather(
            self._versions.shaped(base), self._versions.shaped(other)
        )
        with self._budget.held(first.size_bytes + second.size_bytes):
            compared = await asyncio.to_thread(
                difference,
                await self._stored(base, first, shape),
                await self._stored(other, second, other_shape),
            )
        return _told(first, second, compared, await self._training(first, second))

    async def _stored(
        self, name: VersionName, version: VplmVersion, shape: BackboneShape
    ) -> StoredModule:
        _, stream = await self._versions.open(name)
        data = b"".join([chunk async for chunk in stream])
        return StoredModule(data, version.spec, shape)

    async def _training(self, base: VplmVersion, other: VplmVersion) -> tuple[FieldChange, ...]:
        before, after = await self._settings(base), await self._settings(other)
        return tuple(_changes(before, after))

    async def _settings(self, version: VplmVersion) -> dict[str, str]:
        """How a version was trained, as far as that is on record."""
        found: dict[str, str] = {}
        if (summary := version.training) is not None:
            found |= {"seed": str(summary.seed), "spec_digest": summary.spec_digest}
            found |= {f"environment.{k}": v for k, v in summary.environment.items()}
        if (job := await self._job(version)) is not None:
            found |= {"dataset": job.dataset, "validation_dataset": job.validation_dataset}
            found["base_version"] = str(job.base_version)
            found |= _flat(dataclasses.asdict(job.hyper_parameters))
            found |= {f"columns.{k}": v for k, v in dataclasses.asdict(job.columns).items()}
        return found

    async def _job(self, version: VplmVersion) -> TrainingJob | None:
        if not version.training_job:
            return None
        place = keys.job(JobName.parse(version.training_job))
        try:
            stored = await self._documents.read(place, JobRecord)
        except DataCorrupted:
            return None
        return stored.document.record.job if stored else None


def _told(
    base: VplmVersion,
    other: VplmVersion,
    compared: Difference,
    training: tuple[FieldChange, ...],
) -> VersionDiff:
    before, after = base.spec.head.labels, other.spec.head.labels
    measured = sorted(base.metrics.keys() | other.metrics.keys())
    return VersionDiff(
        base=base.name,
        other=other.name,
        same_bytes=base.digest == other.digest,
        spec=(*_changes(_spec_fields(base.spec), _spec_fields(other.spec)), *_order(before, after)),
        labels_added=tuple(label for label in after if label not in set(before)),
        labels_removed=tuple(label for label in before if label not in set(after)),
        training=training,
        metrics=tuple(
            MetricPair(name, base.metrics.get(name), other.metrics.get(name)) for name in measured
        ),
        tensors=compared.tensors,
        l2=compared.l2,
        relative=compared.relative,
    )


def _order(before: tuple[str, ...], after: tuple[str, ...]) -> list[FieldChange]:
    """That the same labels stand in another order, which says what each row of the head means."""
    if before == after or set(before) != set(after):
        return []
    return [FieldChange("head.labels", ", ".join(before), ", ".join(after))]


def _spec_fields(spec: ModuleSpec) -> dict[str, str]:
    """A spec's fields as text. Labels are told one by one beside them."""
    fields = _flat(dataclasses.asdict(spec))
    return {name: text for name, text in fields.items() if name != "head.labels"}


def _flat(values: Mapping[str, object], at: str = "") -> dict[str, str]:
    """Fields as text, those of fields with their names joined by dots."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{at}{name}.")
        elif isinstance(value, list | tuple):
            found[f"{at}{name}"] = ", ".join(map(str, value))
        else:
            found[f"{at}{name}"] = _ABSENT if value is None else str(value)
    return found


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[FieldChange]:
    for name in sorted(before.keys() | after.keys()):
        pair = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if pair[0] != pair[1]:
            yield FieldChange(name, *pair)
