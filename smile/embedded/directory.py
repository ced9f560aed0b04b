"""The data directory: where everything lies, and the lock of the one platform that uses it."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from smile.errors import FailedPrecondition

DATA_NOT_WRITABLE = "DATA_NOT_WRITABLE"
LOCK_TRIES = 5
LOCK_TRY_S = 0.05


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """Paths below `--data`. All but the logs must survive restarts."""

    root: Path

    @property
    def objects(self) -> Path:
        return self.root / "objects"

    @property
    def redis(self) -> Path:
        return self.root / "redis"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def secrets_file(self) -> Path:
        return self.root / "secrets.json"

    @property
    def signing_keys(self) -> Path:
        return self.root / "signing-keys"

    @property
    def unsigned_accepted(self) -> Path:
        """There while records without a signature are read."""
        return self.root / "unsigned-accepted"

    @property
    def state_file(self) -> Path:
        return self.run / "platform.json"

    @property
    def lock_file(self) -> Path:
        return self.run / "lock"

    def log(self, name: str) -> Path:
        """Where the process `name` writes its standard output and error."""
        return self.logs / f"{name}.log"

    @classmethod
    def at(cls, path: Path) -> DataDirectory:
        """The directory at `path`, which need not exist yet."""
        return cls(path.expanduser().resolve())

    def prepare(self) -> None:
        """Make the directories, for this user only.

        Raises:
            FailedPrecondition: one cannot be made or written to.
        """
        for folder in (self.root, self.objects, self.redis, self.logs, self.run):
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise FailedPrecondition(
                    f"the data directory {self.root} cannot be used: {folder} is not writable "
                    f"({error.strerror}); choose another with --data",
                    reason=DATA_NOT_WRITABLE,
                    metadata={"path": str(folder)},
                ) from error


class DirectoryLock:
    """An exclusive lock that ends with the last process that holds `fileno`."""

    def __init__(self, fileno: int) -> None:
        self.fileno = fileno

    @classmethod
    def acquire(cls, path: Path) -> DirectoryLock | None:
        """The lock on `path`, or None while another process holds it. Raises `OSError`."""
        fileno = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        for _ in range(LOCK_TRIES):  # one that only looks (`is_locked`) holds it for an instant
            try:
                fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_TRY_S)
            else:
                return cls(fileno)
        os.close(fileno)
        return None

    def release(self) -> None:
        """Give up this process's hold. A process that inherited it keeps the lock."""
        os.close(self.fileno)


def is_locked(directory: DataDirectory) -> bool:
    """Whether a platform holds the directory now."""
    if not directory.lock_file.exists():
        return False
    fileno = os.open(directory.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fileno, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fileno)
    return False


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` whole: a reader sees the old bytes or the new ones."""
    fileno, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fileno, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
