"""`DatasetService`: datasets in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeAlias

import grpc
from google.protobuf import empty_pb2

from services.storage.blobs import Declared
from services.storage.datasets import Datasets, NewDataset
from smile import codec
from smile.names import DatasetName, TenantName, check_id
from smile.pages import page_size
from smile.rpc.auth import current_principal, own
from smile.rpc.streams import opened
from smile.v1 import datasets_pb2, datasets_pb2_grpc, resources_pb2

FULL_NAME = "smile.v1.DatasetService"

Context: TypeAlias = "grpc.aio.ServicerContext[object, object]"


class DatasetServicer(datasets_pb2_grpc.DatasetServiceServicer):
    """Decodes, asks the datasets, encodes."""

    def __init__(self, datasets: Datasets) -> None:
        self._datasets = datasets

    async def UploadDataset(
        self, request: AsyncIterator[datasets_pb2.UploadDatasetRequest], context: Context
    ) -> resources_pb2.Dataset:
        first, chunks = await opened(request)
        return codec.dataset_to_pb(await self._datasets.upload(_new(first.header), chunks))

    async def GetDataset(
        self, request: datasets_pb2.GetDatasetRequest, context: Context
    ) -> resources_pb2.Dataset:
        return codec.dataset_to_pb(await self._datasets.get(_dataset(request.name)))

    async def ListDatasets(
        self, request: datasets_pb2.ListDatasetsRequest, context: Context
    ) -> datasets_pb2.ListDatasetsResponse:
        parent = own(request.parent, TenantName.parse, current_principal())
        datasets, token = await self._datasets.list_page(
            parent.tenant, page_size(request.page_size), request.page_token
        )
        return datasets_pb2.ListDatasetsResponse(
            datasets=[codec.dataset_to_pb(dataset) for dataset in datasets],
            next_page_token=token,
        )

    async def DownloadDataset(
        self, request: datasets_pb2.DownloadDatasetRequest, context: Context
    ) -> AsyncIterator[datasets_pb2.DownloadDatasetResponse]:
        dataset, chunks = await self._datasets.open(_dataset(request.name))
        yield datasets_pb2.DownloadDatasetResponse(dataset=codec.dataset_to_pb(dataset))
        async for chunk in chunks:
            yield datasets_pb2.DownloadDatasetResponse(chunk=chunk)

    async def DeleteDataset(
        self, request: datasets_pb2.DeleteDatasetRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._datasets.delete(_dataset(request.name), request.request_id)
        return empty_pb2.Empty()


def _dataset(name: str) -> DatasetName:
    return own(name, DatasetName.parse, current_principal())


def _new(header: datasets_pb2.UploadDatasetHeader) -> NewDataset:
    parent = own(header.parent, TenantName.parse, current_principal())
    return NewDataset(
        name=DatasetName(parent.tenant, check_id(header.dataset_id, "dataset")),
        format=codec.FORMATS.from_pb(header.format),
        declared=Declared(header.size_bytes, header.digest),
        request_id=header.request_id,
        display_name=header.display_name,
    )
