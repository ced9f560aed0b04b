"""Storage over an S3 server behind a network: either fails, in every way, at every request."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from google.protobuf.message import Message

from smile.errors import Internal, SmileError
from tests.faults.buckets import S3Server
from tests.faults.operations import ALL, Change
from tests.faults.processes import Nursery
from tests.faults.proxy import FaultyProxy, Mishap
from tests.faults.storing import Storage, compared, repeated, storage
from tests.faults.tally import Selection, Tally

REMOTE = "with a bad object store requests end in time, tell the truth, and succeed once it is well"
TIMEOUT_S = 10.0  # of one request to the object store, on a busy machine
SILENT_S = 1.0  # the same where it never answers
ANSWER_S_MAX = 60.0  # generous: of one request to storage, on a busy machine
_numbers = count()


@asynccontextmanager
async def remote_storage(
    nursery: Nursery, server: S3Server, timeout_s: float = TIMEOUT_S
) -> AsyncIterator[tuple[Storage, FaultyProxy]]:
    """Storage over a bucket of its own, and what is between them."""
    bucket = f"faults-{next(_numbers)}"
    with TemporaryDirectory(prefix="sf") as folder:
        async with FaultyProxy(server.port).running() as proxy:
            settings = {
                "SMILE_STORAGE_URL": f"s3://{bucket}",
                "SMILE_STORAGE_S3_ENDPOINT": proxy.address,
                "SMILE_STORAGE_S3_ACCESS_KEY": server.access_key,
                "SMILE_STORAGE_S3_SECRET_KEY": server.secret_key,
                "SMILE_STORAGE_S3_TIMEOUT_S": str(timeout_s),
            }
            where = server.bucket(bucket)
            async with storage(nursery, Path(folder), where, **settings) as here:
                yield here, proxy


async def at_every_request(
    nursery: Nursery, server: S3Server, mishap: Mishap, selection: Selection, tally: Tally
) -> None:
    """One mishap at the selected requests of every operation, for once and from there on."""
    began = time.monotonic()
    timeout_s = SILENT_S if mishap is Mishap.SILENT else TIMEOUT_S
    for operation in selection.among(list(ALL), mishap):
        async with remote_storage(nursery, server, timeout_s) as (here, proxy):
            change = await here.fresh(operation)
            proxy.harm(None)
            await change.done(here.world)
            for at in selection.of(proxy.count, f"{mishap} {operation}"):
                for lasting in (False, True):
                    await _befallen(here, proxy, operation, tally, (mishap, at, lasting))
    tally.seconds += time.monotonic() - began


async def on_a_real_server(
    nursery: Nursery, server: S3Server, selection: Selection, tally: Tally
) -> None:
    """Every mishap on a real server; of those drawn, one each."""
    for mishap in selection.among(list(Mishap), "real"):
        await at_every_request(nursery, server, Mishap(mishap), selection, tally)


async def _befallen(
    here: Storage,
    proxy: FaultyProxy,
    operation: str,
    tally: Tally,
    blow: tuple[Mishap, int, bool],
) -> None:
    mishap, at, lasting = blow
    change = await here.fresh(operation)
    before = here.judged()
    proxy.harm(mishap, at, lasting=lasting)
    answer, failed, took_s = await _sent(here, change)
    proxy.heal()
    tally.faults += proxy.struck
    kind = "lasting" if lasting else "once"
    where = f"{operation}, {mishap} at request {at} ({kind}, {proxy.told[at - 1 : at]})"
    if proxy.struck:
        tally.steps[f"{operation}: {at} {kind}"] += 1
    tally.whole(took_s < ANSWER_S_MAX, f"{where}: took {took_s:.1f} s")
    tally.whole(not isinstance(failed, Internal), f"{where}: says {failed!r}")
    if answer is not None:
        tally.whole(change.right(answer), f"{where}: answers wrongly: {answer}")
    harmed = here.judged()
    await repeated(here, change, tally, where)
    compared(tally, where, (before, harmed, here.judged()))


async def _sent(
    here: Storage, change: Change
) -> tuple[Sequence[Message] | None, SmileError | None, float]:
    began = time.monotonic()
    try:
        answer = await change.send(here.world)
    except SmileError as error:
        return None, error, time.monotonic() - began
    return answer, None, time.monotonic() - began
