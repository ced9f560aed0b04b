"""A Redis of its own for a platform under test: durable, easy to kill, wipe and fill, and with a
wall clock that can be set.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import redis

from smile.embedded.redis_server import server_program
from tests.faults.small_disk import fill

START_S_MAX = 30.0
CLOCK_SOURCE = Path(__file__).with_name("wrong_clock.c")


def may_set_clocks() -> bool:
    """Whether a clock can be put before a Redis here: that wants a C compiler."""
    return shutil.which("cc") is not None


@dataclass
class RedisServer:
    """A server below `folder`, with the append-only file that deployments have."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def clock_settable(self) -> None:
        """Before its start: from now on `clock_s` is heeded. Raises `CalledProcessError`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        library = self.folder / "wrong_clock.so"
        command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(CLOCK_SOURCE)]
        subprocess.run(command, check=True, capture_output=True)
        self._clock.write_bytes(struct.pack("=q", 0))
        self.environment |= {"LD_PRELOAD": str(library), "SMILE_TEST_CLOCK": str(self._clock)}

    def set_clock(self, wrong_s: int) -> None:
        """Its wall clock is wrong by so many seconds from now on."""
        with self._clock.open("r+b") as file:
            file.write(struct.pack("=q", wrong_s))

    @property
    def _clock(self) -> Path:
        return self.folder / "clock"

    def start(self) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        self.socket.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [
                server_program(),
                *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.data)),
                *("--appendonly", "yes", "--appendfsync", "everysec", "--save", ""),
                *("--maxmemory-policy", "noeviction"),
            ],
            stdout=subprocess.DEVNULL,
            env=self.environment,
        )
        deadline = time.monotonic() + START_S_MAX
        while not self._answers():
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def restart(self) -> None:
        """Killed, and started with what its append-only file has."""
        self.kill()
        self.start()

    def wipe(self) -> None:
        """Killed, and started with nothing: its disk was lost."""
        self.kill()
        shutil.rmtree(self.data)
        self.start()

    def fill(self) -> None:
        """No memory is left, and nothing may be evicted."""
        with self._client() as client:
            client.config_set("maxmemory", 1)

    def empty(self) -> None:
        """There is memory again."""
        with self._client() as client:
            client.config_set("maxmemory", 0)

    def fill_disk(self) -> None:
        """The file system of `data`, which must be a small one, has no room left."""
        fill(self._filler)

    def empty_disk(self) -> None:
        """There is room again."""
        self._filler.unlink()

    @property
    def _filler(self) -> Path:
        return self.data / "filler"

    def _client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False
