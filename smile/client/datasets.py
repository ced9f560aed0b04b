"""Datasets: what storage keeps to train on."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

from smile import codec
from smile.client.calls import (
    PAGE_ROWS,
    READ_TIMEOUT_S,
    TRANSFER_TIMEOUT_S,
    WRITE_TIMEOUT_S,
    Calls,
    asking,
    every,
    new_request_id,
)
from smile.client.chunks import MeasuredFile, Sending
from smile.client.options import choice
from smile.client.retry import retried
from smile.errors import InvalidArgument
from smile.resources import Dataset, DatasetFormat
from smile.v1 import datasets_pb2, resources_pb2

Rows: TypeAlias = Iterable[Mapping[str, object]]

SUFFIXES: dict[str, DatasetFormat] = {
    ".csv": DatasetFormat.CSV,
    ".jsonl": DatasetFormat.JSONL,
    ".ndjson": DatasetFormat.JSONL,
    ".parquet": DatasetFormat.PARQUET,
}


class DatasetCalls(Calls):
    """Uploading, finding and deleting datasets."""

    async def upload_dataset(
        self,
        dataset: str,
        source: str | os.PathLike[str] | Rows,
        *,
        format: DatasetFormat | str | None = None,
        display_name: str = "",
        on_progress: Callable[[int, int], None] | None = None,
        request_id: str | None = None,
        timeout: float | None = None,
    ) -> Dataset:
        """Stores a file (format told by its suffix unless given) or rows as a dataset.

        The bytes are streamed; `on_progress` hears bytes sent and bytes in all.

        Raises:
            InvalidArgument: the file cannot be read, is empty, or of no known format.
            AlreadyExists: you have a dataset of this name; datasets never change.
            QuotaExceeded: it is larger than what the tenant may still store.
        """
        name = self._scope.dataset(dataset)
        async with _as_file(source) as path:
            file = await MeasuredFile.measure(path)
            with asking():
                header = datasets_pb2.UploadDatasetHeader(
                    parent=str(self._scope.parent(name.tenant)),
                    dataset_id=name.dataset,
                    format=codec.FORMATS.to_pb(format_of(path, format)),
                    size_bytes=file.size_bytes,
                    digest=file.digest,
                    display_name=display_name,
                    request_id=request_id or new_request_id(),
                )
            return await self._upload(header, file, on_progress, timeout or TRANSFER_TIMEOUT_S)

    async def dataset(self, dataset: str, *, timeout: float | None = None) -> Dataset:
        """One dataset. Raises `NotFound`."""
        with asking():
            request = datasets_pb2.GetDatasetRequest(name=str(self._scope.dataset(dataset)))
            found = await self._connection.datasets.GetDataset(
                request, timeout=timeout or READ_TIMEOUT_S
            )
        return codec.dataset_from_pb(found)

    async def datasets(
        self, *, page_size: int = PAGE_ROWS, timeout: float | None = None
    ) -> AsyncGenerator[Dataset, None]:
        """One's datasets by id, read page by page; `timeout` is for a page."""
        parent = str(self._scope.parent())

        async def page(token: str) -> tuple[list[Dataset], str]:
            with asking():
                response = await self._connection.datasets.ListDatasets(
                    datasets_pb2.ListDatasetsRequest(
                        parent=parent, page_size=page_size, page_token=token
                    ),
                    timeout=timeout or READ_TIMEOUT_S,
                )
            return [codec.dataset_from_pb(d) for d in response.datasets], response.next_page_token

        async for dataset in every(page):
            yield dataset

    async def delete_dataset(self, dataset: str, *, timeout: float | None = None) -> None:
        """Deletes a dataset; versions trained on it stay. Raises `NotFound`."""
        with asking():
            request = datasets_pb2.DeleteDatasetRequest(
                name=str(self._scope.dataset(dataset)), request_id=new_request_id()
            )
            await self._connection.datasets.DeleteDataset(
                request, timeout=timeout or WRITE_TIMEOUT_S
            )

    async def _upload(
        self,
        header: datasets_pb2.UploadDatasetHeader,
        file: MeasuredFile,
        on_progress: Callable[[int, int], None] | None,
        timeout: float,
    ) -> Dataset:
        async def messages() -> AsyncIterator[datasets_pb2.UploadDatasetRequest]:
            yield datasets_pb2.UploadDatasetRequest(header=header)
            async for chunk in file.chunks(on_progress):
                yield datasets_pb2.UploadDatasetRequest(chunk=chunk)

        async def attempt() -> resources_pb2.Dataset:
            sending = Sending(messages())
            with asking(), sending.telling():
                return await self._connection.datasets.UploadDataset(
                    aiter(sending), timeout=timeout
                )

        return codec.dataset_from_pb(await retried(attempt))


def format_of(path: Path, given: DatasetFormat | str | None = None) -> DatasetFormat:
    """The format given, else the one the suffix tells. Raises `InvalidArgument`."""
    if given is not None:
        return choice(DatasetFormat, given, "format")
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise InvalidArgument(
            f"the format of {path.name!r} cannot be told from its suffix; known are "
            f"{', '.join(SUFFIXES)}. Give format as one of {', '.join(DatasetFormat)}",
            reason="FORMAT_UNKNOWN",
        )
    return found


@asynccontextmanager
async def _as_file(source: str | os.PathLike[str] | Rows) -> AsyncIterator[Path]:
    """A path as it is; rows as a temporary JSON Lines file."""
    if isinstance(source, str | os.PathLike):
        yield Path(source)
        return
    with tempfile.TemporaryDirectory(prefix="smile-") as folder:
        path = Path(folder) / "rows.jsonl"
        await asyncio.to_thread(_write_rows, source, path)
        yield path


def _write_rows(rows: Rows, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number, row in enumerate(rows, start=1):
            try:
                file.write(json.dumps(dict(row), ensure_ascii=False, allow_nan=False) + "\n")
            except (TypeError, ValueError) as error:
                raise InvalidArgument(
                    f"row {number} cannot be written as JSON: {error}", reason="ROW_MALFORMED"
                ) from error
