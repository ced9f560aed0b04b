"""A Redis of its own for a platform under test: durable, and easy to kill, wipe and fill."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from smile.embedded.redis_server import server_program

START_S_MAX = 30.0


@dataclass
class RedisServer:
    """A server below `folder`, with the append-only file that deployments have."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def data(self) -> Path:
        return self.folder / "data"

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

    def _client(self) -> redis.Redis:
        return redis.Redis(unix_socket_path=str(self.socket))

    def _answers(self) -> bool:
        try:
            with self._client() as client:
                return bool(client.ping())
        except redis.exceptions.RedisError:
            return False
