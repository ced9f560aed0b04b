"""Reading a dataset for its owner as a job would, without training."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from services.trainer.checks import check_columns
from services.trainer.data.rows import RowSchema, read_dataset
from services.trainer.storage import Storage
from smile.errors import InvalidArgument
from smile.names import DatasetName, VplmName
from smile.resources import ColumnMapping, DatasetReport


@dataclass(frozen=True, slots=True)
class ValidationLimits:
    """Bounds on reading datasets inside the service.

    Attributes:
        bytes_max: Largest dataset read here; larger ones are checked by their job alone.
        readers_max: Datasets read at a time; others wait.
        folder: Where they lie meanwhile; None means the system's choice.
    """

    bytes_max: int
    readers_max: int
    folder: Path | None = None


class Validator:
    """Makes dataset reports."""

    def __init__(self, storage: Storage, limits: ValidationLimits) -> None:
        self._storage = storage
        self._limits = limits
        self._readers = asyncio.Semaphore(limits.readers_max)

    async def report(
        self, dataset: DatasetName, vplm: VplmName, columns: ColumnMapping
    ) -> DatasetReport:
        """Every problem a job would find in the dataset's rows.

        Raises:
            NotFound: the dataset or the vPLM is not there.
            InvalidArgument: the columns do not fit the task, or the dataset is too large
                (DATASET_TOO_LARGE).
        """
        head = (await self._storage.vplm(vplm)).spec.head
        check_columns(columns, head)
        size = (await self._storage.dataset(dataset)).size_bytes
        limit = self._limits.bytes_max
        if size > limit:
            raise InvalidArgument(
                f"datasets of at most {limit} bytes are validated on request, {dataset} has "
                f"{size}; its training job checks it all the same",
                reason="DATASET_TOO_LARGE",
                metadata={"limit": str(limit), "value": str(size)},
            )
        async with self._readers:
            return await self._read(dataset, RowSchema(head, columns))

    async def _read(self, dataset: DatasetName, schema: RowSchema) -> DatasetReport:
        with TemporaryDirectory(dir=self._limits.folder, prefix="smile-check-") as folder:
            path = Path(folder) / "dataset"
            found = await self._storage.download_dataset(dataset, path)
            read = await asyncio.to_thread(read_dataset, path, found.format, schema)
        return read.report
