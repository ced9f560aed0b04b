"""Client streams whose first message is a header and whose others are chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TypeVar

from smile.errors import InvalidArgument
from smile.v1.adapters_pb2 import CommitAdapterRequest
from smile.v1.artifacts_pb2 import PutArtifactFileRequest
from smile.v1.creator_pb2 import CreatePublicAdapterRequest, ImportVplmRequest
from smile.v1.datasets_pb2 import UploadDatasetRequest
from smile.v1.storage_pb2 import CommitVplmRequest, PutVersionRequest
from smile.v1.training_records_pb2 import PutTrainingCheckpointRequest

P = TypeVar(
    "P",
    CommitAdapterRequest,
    CommitVplmRequest,
    CreatePublicAdapterRequest,
    ImportVplmRequest,
    PutArtifactFileRequest,
    PutTrainingCheckpointRequest,
    PutVersionRequest,
    UploadDatasetRequest,
)


async def opened(parts: AsyncIterator[P]) -> tuple[P, AsyncIterator[bytes]]:
    """The first message, which holds the header, and the chunks that follow.

    Raises:
        InvalidArgument: the messages come in another order.
    """
    first = await anext(parts, None)
    if first is None or not first.HasField("header"):
        raise InvalidArgument(
            "the first message of this stream is its header", reason="HEADER_MISSING"
        )
    return first, _chunks(parts)


async def _chunks(parts: AsyncIterator[P]) -> AsyncIterator[bytes]:
    async for part in parts:
        if not part.HasField("chunk"):
            raise InvalidArgument(
                "only the first message of this stream is a header", reason="HEADER_REPEATED"
            )
        yield part.chunk
