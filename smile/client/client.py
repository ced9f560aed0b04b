"""The asynchronous client: every part's methods over one connection."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from smile.client.account import AccountCalls
from smile.client.adapters import AdapterCalls
from smile.client.artifacts import ArtifactCalls
from smile.client.calls import Connection
from smile.client.datasets import DatasetCalls
from smile.client.inference import InferenceCalls
from smile.client.maintenance import MaintenanceCalls
from smile.client.porting import PortingCalls
from smile.client.renting import RentingCalls
from smile.client.scope import Scope
from smile.client.settings import ClientSettings, Endpoints
from smile.client.training import TrainingCalls
from smile.client.versions import VersionCalls
from smile.client.vplms import VplmCalls


class AsyncClient(
    AdapterCalls,
    PortingCalls,
    VplmCalls,
    VersionCalls,
    DatasetCalls,
    TrainingCalls,
    InferenceCalls,
    RentingCalls,
    AccountCalls,
    MaintenanceCalls,
    ArtifactCalls,
):
    """SMILE, for one key.

        async with smile.AsyncClient() as client:
            result = await client.infer("topic", "Shares rose on Friday")

    Ids (`topic`) and full names (`tenants/acme/vplms/topic`) are both accepted wherever a resource
    is named. Every mutation carries a request id of its own, kept over retries, so none happens
    twice. `timeout` is in seconds, everywhere. Use a client on one event loop only.

    Args:
        api_key: The key; default: `SMILE_API_KEY`.
        endpoints: `Endpoints`, or text like `processor=host:port,storage=host:port`; default:
            `SMILE_ENDPOINTS`, and this machine's ports 7101 to 7104 for services not named.

    Raises:
        Unauthenticated: there is no key, or it is malformed.
        InvalidArgument: the endpoints are malformed.
    """

    def __init__(
        self, api_key: str | None = None, *, endpoints: Endpoints | str | None = None
    ) -> None:
        settings = ClientSettings.of(api_key, endpoints)
        super().__init__(Connection(settings), Scope.of_key(settings.api_key))

    @property
    def tenant(self) -> str | None:
        """Whose key it is; None for the operator's."""
        return self._scope.tenant

    async def close(self) -> None:
        """Close the connection; calls under way end with `Cancelled`."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
