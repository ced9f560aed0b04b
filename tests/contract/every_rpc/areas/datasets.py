"""Requests of datasets."""

from __future__ import annotations

from smile.v1 import datasets_pb2
from tests.contract.every_rpc.area import Area
from tests.contract.every_rpc.belongings import ROWS
from tests.contract.every_rpc.messages import new_id, upload

AREA = Area(
    requests={
        "DatasetService.UploadDataset": lambda own, _: upload(own.parent, ROWS),
        "DatasetService.GetDataset": lambda own, _: datasets_pb2.GetDatasetRequest(
            name=own.dataset()
        ),
        "DatasetService.ListDatasets": lambda own, _: datasets_pb2.ListDatasetsRequest(
            parent=own.parent
        ),
        "DatasetService.DownloadDataset": lambda own, _: datasets_pb2.DownloadDatasetRequest(
            name=own.dataset()
        ),
        "DatasetService.DeleteDataset": lambda own, _: datasets_pb2.DeleteDatasetRequest(
            name=own.dataset("doomed"), request_id=new_id()
        ),
    },
    names=frozenset(
        {
            "UploadDatasetHeader.parent",
            "GetDatasetRequest.name",
            "ListDatasetsRequest.parent",
            "DownloadDatasetRequest.name",
            "DeleteDatasetRequest.name",
        }
    ),
    free=frozenset(
        {
            "dataset_id",
            "digest",
        }
    ),
)
