"""What every part of the client is made of: channels, deadlines, pages and errors."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import cached_property
from types import TracebackType
from typing import TypeVar

import grpc

from smile.client.pacing import Pace
from smile.client.scope import Scope
from smile.client.settings import ClientSettings
from smile.errors import InvalidArgument
from smile.rpc.channel import ApiKey, build_channel
from smile.rpc.status import from_rpc_error
from smile.v1 import (
    accounting_pb2_grpc,
    artifacts_pb2_grpc,
    creator_pb2_grpc,
    datasets_pb2_grpc,
    identity_pb2_grpc,
    maintenance_pb2_grpc,
    processor_pb2_grpc,
    storage_pb2_grpc,
    trainer_pb2_grpc,
)

READ_TIMEOUT_S = 10.0
WRITE_TIMEOUT_S = 30.0
INFER_TIMEOUT_S = 60.0
TRANSFER_TIMEOUT_S = 600.0
PAGE_ROWS = 200

T = TypeVar("T")


class Connection:
    """Channels to the four services, each opened by the first call that needs it.

    Belongs to the event loop of that call.
    """

    def __init__(self, settings: ClientSettings) -> None:
        self._settings = settings
        self._channels: dict[str, grpc.aio.Channel] = {}
        self.pace = Pace()

    @cached_property
    def creator(self) -> creator_pb2_grpc.CreatorServiceAsyncStub:
        return creator_pb2_grpc.CreatorServiceStub(self._to(self._settings.endpoints.creator))

    @cached_property
    def storage(self) -> storage_pb2_grpc.StorageServiceAsyncStub:
        return storage_pb2_grpc.StorageServiceStub(self._to(self._settings.endpoints.storage))

    @cached_property
    def accounts(self) -> accounting_pb2_grpc.AccountingServiceAsyncStub:
        return accounting_pb2_grpc.AccountingServiceStub(self._to(self._settings.endpoints.storage))

    @cached_property
    def artifacts(self) -> artifacts_pb2_grpc.ArtifactServiceAsyncStub:
        return artifacts_pb2_grpc.ArtifactServiceStub(self._to(self._settings.endpoints.storage))

    @cached_property
    def datasets(self) -> datasets_pb2_grpc.DatasetServiceAsyncStub:
        return datasets_pb2_grpc.DatasetServiceStub(self._to(self._settings.endpoints.storage))

    @cached_property
    def identity(self) -> identity_pb2_grpc.IdentityServiceAsyncStub:
        return identity_pb2_grpc.IdentityServiceStub(self._to(self._settings.endpoints.storage))

    @cached_property
    def maintenance(self) -> maintenance_pb2_grpc.MaintenanceServiceAsyncStub:
        address = self._settings.endpoints.storage
        return maintenance_pb2_grpc.MaintenanceServiceStub(self._to(address))

    @cached_property
    def trainer(self) -> trainer_pb2_grpc.TrainerServiceAsyncStub:
        return trainer_pb2_grpc.TrainerServiceStub(self._to(self._settings.endpoints.trainer))

    @cached_property
    def processor(self) -> processor_pb2_grpc.ProcessorServiceAsyncStub:
        return processor_pb2_grpc.ProcessorServiceStub(self._to(self._settings.endpoints.processor))

    async def close(self) -> None:
        """Close every channel; calls under way end with `Cancelled`."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()

    def _to(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            credential = ApiKey(self._settings.api_key)
            self._channels[address] = build_channel(address, credentials=credential)
        return self._channels[address]


class Calls:
    """One part of the client's methods: a connection and whose names short ids are."""

    def __init__(self, connection: Connection, scope: Scope) -> None:
        self._connection = connection
        self._scope = scope


class _Asking:
    """What `asking` gives; keeps nothing, so one serves all."""

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None
    ) -> None:
        if error is None:
            return
        if isinstance(error, grpc.aio.AioRpcError):
            raise from_rpc_error(error) from error
        if isinstance(error, UnicodeEncodeError):
            raise InvalidArgument(
                f"a text is not valid UTF-8: character {error.start} is a lone surrogate",
                reason="TEXT_NOT_UTF8",
            ) from error
        if isinstance(error, ValueError):
            raise InvalidArgument(f"a value does not fit its field: {error}") from error


_ASKING = _Asking()


def asking() -> _Asking:
    """Turns gRPC's errors, and values that do not fit a message, into `smile.errors`."""
    return _ASKING


async def every(page: Callable[[str], Awaitable[tuple[Sequence[T], str]]]) -> AsyncIterator[T]:
    """The items of all pages; `page` takes a page token and gives items and the next token."""
    token = ""
    while True:
        items, token = await page(token)
        for item in items:
            yield item
        if not token:
            return


def new_request_id() -> str:
    """The id of one mutation, kept over its retries."""
    return str(uuid.uuid4())
