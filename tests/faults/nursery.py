"""Bears processes of the platform in milliseconds: it has imported everything, and forks.

`python -m tests.faults.nursery` reads orders as JSON lines and answers each with a process id. Its
children are real processes that die by real signals; they die with it, too.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

from services.creator import __main__ as creator_main
from services.creator.config import CreatorSettings
from services.creator.vplms import VplmMaker
from services.storage import __main__ as storage_main
from services.storage.config import StorageSettings
from services.trainer import __main__ as trainer_main
from services.trainer.config import TrainerSettings
from services.trainer.queueing.queue import JobQueue
from services.trainer.storage_client import StorageClient
from services.trainer.worker import __main__ as worker
from smile import logs
from smile.client import records as vplm_records
from smile.client.records import VplmRecords
from smile.client.version_reader import VersionReader
from smile.config import load
from smile.rpc.server import run
from smile.store.objects import S3Options, open_store
from tests.faults import tables_roles
from tests.faults.failpoints import Failpoints
from tests.faults.instruments import (
    SteppingStore,
    watch_calls,
    watch_files,
    watch_pieces,
    wrong_clock,
)

PARENT_DIED = 1  # PR_SET_PDEATHSIG
STORAGE_CALLS = (
    *("vplm", "version", "versions", "download_version", "dataset", "download_dataset"),
    *("create_record", "update_record", "record", "records", "pending_records", "put_version"),
    *("set_alias", "put_curve", "put_checkpoint", "checkpoint"),
)
QUEUE_CALLS = ("reserve", "enqueue", "claim", "beat", "finish", "give_back", "cancel")


@dataclass(frozen=True, slots=True)
class Order:
    """A process to bear: which service, with which settings, and where its failpoints are."""

    role: str
    settings: dict[str, str]
    points: str
    log: str

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def storage(points: Failpoints) -> None:
    settings = load(StorageSettings)
    if settings.url.startswith("file://"):
        watch_files(Path(settings.url.removeprefix("file://")), points)

    def opened(url: str, options: S3Options | None = None) -> SteppingStore:
        return SteppingStore(open_store(url, options), points)

    vars(storage_main)["open_store"] = opened
    wrong_clock(points, _modules("services.storage"))
    logs.configure("storage", settings.log_level, settings.log_format)
    run(storage_main.main(settings))


def creator(points: Failpoints) -> None:
    watch_calls(VplmMaker, ("create", "adopt", "derive", "_build", "_derived", "_bytes"), points)
    watch_calls(VplmRecords, ("commit", "adopt", "refer"), points)
    watch_calls(VersionReader, ("get", "resolve"), points)
    watch_pieces(vplm_records, points)
    settings = load(CreatorSettings)
    logs.configure("creator", settings.log_level, settings.log_format)
    run(creator_main.main(settings))


def trainer(points: Failpoints) -> None:
    watch_calls(StorageClient, STORAGE_CALLS, points)
    watch_calls(JobQueue, QUEUE_CALLS, points)
    wrong_clock(points, _modules("services.trainer"))
    settings = load(TrainerSettings)
    logs.configure("trainer", settings.log_level, settings.log_format)
    run(trainer_main.main(settings))


def train(points: Failpoints) -> None:
    watch_calls(StorageClient, STORAGE_CALLS, points)
    watch_calls(JobQueue, QUEUE_CALLS, points)
    wrong_clock(points, _modules("services.trainer"))
    settings = load(TrainerSettings)
    logs.configure("worker", settings.log_level, settings.log_format)
    worker.set_threads(settings)
    run(worker.main(settings, None))


ROLES: dict[str, Callable[[Failpoints], None]] = {
    "storage": storage,
    "creator": creator,
    "trainer": trainer,
    "worker": train,
    "builder": tables_roles.builder,
    "distiller": tables_roles.distiller,
    "processor": tables_roles.processor,
}


def _modules(package: str) -> list[ModuleType]:
    names = [name for name in sys.modules if name.startswith((f"{package}.", "smile."))]
    return [sys.modules[name] for name in names]


def _born(order: Order) -> None:
    """The child's whole life."""
    ctypes.CDLL(None).prctl(PARENT_DIED, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDWR)
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, target)
    os.environ.clear()
    os.environ.update(order.settings)
    code = 1
    try:
        ROLES[order.role](Failpoints.at(Path(order.points)))
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the children but by their end
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        order = Order(**json.loads(line))
        child = os.fork()
        if child == 0:
            _born(order)
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
