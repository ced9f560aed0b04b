"""A real S3 server for tests: Ceph's RADOS gateway, with one monitor and one OSD over a file.

Debian's packages have all of it. Where they are missing they are installed, which wants root;
where that cannot be done either, tests of the real server are skipped and say so, but never in CI
(the variable `CI` is set), where that fails them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from smile.store.objects import S3Options

PACKAGES = ("ceph-mon", "ceph-osd", "ceph-common", "radosgw")
PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
ACCESS_KEY, SECRET_KEY = "smile-test", "smile-test-secret"
INSTALL_S_MAX = 300.0
START_S_MAX = 240.0
STOP_S_MAX = 5.0
POLL_S = 0.25
CONFIG = """
[global]
fsid={fsid}
mon_host=[v1:127.0.0.1:{mon_port}]
auth_cluster_required=none
auth_service_required=none
auth_client_required=none
osd_pool_default_size=1
osd_pool_default_min_size=1
mon_allow_pool_size_one=true
osd_crush_chooseleaf_type=0
osd_pool_default_pg_num=4
osd_pool_default_pgp_num=4
mon_max_pg_per_osd=1000
run_dir={folder}/run
admin_socket={folder}/run/$name.asok
log_file={folder}/log/$name.log
pid_file={folder}/run/$name.pid
ms_bind_msgr2=false
mon_data_avail_crit=1
mon_data_avail_warn=2
osd_objectstore=bluestore
bluestore_block_size=2147483648
osd_memory_target=939524096
osd_class_update_on_start=false
setuser_match_path=
[mon.a]
mon_data={folder}/mon
[osd.0]
osd_data={folder}/osd
[client.rgw]
rgw_frontends=beast endpoint=127.0.0.1:{port}
"""


class NoServer(Exception):
    """There is none here, and none can be had."""


def _here() -> bool:
    return all(shutil.which(program) for program in PROGRAMS)


def _install() -> None:
    """Raises `NoServer`."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise NoServer(f"{', '.join(PACKAGES)} are missing, and only root may install them")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    deadline = time.monotonic() + INSTALL_S_MAX
    for command in (
        ("apt-get", "update", "-qq"),
        ("apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES),
    ):
        left = max(deadline - time.monotonic(), 1.0)
        try:
            subprocess.run(command, env=environment, timeout=left, check=True, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise NoServer(f"{PACKAGES[-1]} cannot be installed: {error}") from error


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Gateway:
    """The processes of one server, below `folder`, which is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._config = folder / "ceph.conf"
        self.port, self._mon_port = _free_ports(2)

    @property
    def options(self) -> S3Options:
        return S3Options(f"http://127.0.0.1:{self.port}", ACCESS_KEY, SECRET_KEY)

    def start(self) -> None:
        """Start everything, and wait until it serves. Raises `TimeoutError`."""
        for name in ("mon", "osd", "run", "log"):
            (self._folder / name).mkdir(parents=True)
        fsid, osd = str(uuid.uuid4()), str(uuid.uuid4())
        self._config.write_text(
            CONFIG.format(fsid=fsid, folder=self._folder, port=self.port, mon_port=self._mon_port)
        )
        address = f"[v1:127.0.0.1:{self._mon_port}]"
        monmap = str(self._folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._run("ceph-mon", "-i", "a")
        self._until((self._folder / "run" / "mon.a.asok").is_socket, "the monitor")
        self._patiently("ceph", "osd", "new", osd, "0")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        self._patiently("ceph-osd", "-i", "0")
        self._run("radosgw", "-n", "client.rgw")
        self._until(self._answers, "the gateway")
        keys = (f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}")
        self._patiently("radosgw-admin", "user", "create", "--uid=smile", "--display-name=s", *keys)

    def stop(self) -> None:
        """End the processes that were started here."""
        started = [
            int(file.read_text())
            for name in ("client.rgw", "osd.0", "mon.a")
            if (file := self._folder / "run" / f"{name}.pid").is_file() and file.read_text()
        ]
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            deadline = time.monotonic() + STOP_S_MAX
            while started and time.monotonic() < deadline:
                started = [pid for pid in started if Path(f"/proc/{pid}").exists()]
                time.sleep(POLL_S)

    def _run(self, program: str, *arguments: str) -> None:
        command: Sequence[str] = (program, "-c", str(self._config), *arguments)
        if program == "monmaptool":
            command = (program, *arguments)
        subprocess.run(command, check=True, capture_output=True, timeout=START_S_MAX)

    def _patiently(self, program: str, *arguments: str) -> None:
        """Run again until it succeeds: whoever asks the monitor too early is told "wrong fsid"."""

        def succeeds() -> bool:
            try:
                self._run(program, *arguments)
            except subprocess.CalledProcessError:
                return False
            return True

        self._until(succeeds, program)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(self.options.endpoint, timeout=5):
                return True
        except urllib.error.HTTPError as error:
            error.close()
            return True
        except OSError:
            return False

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S_MAX
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not start within {START_S_MAX:g} s")
            time.sleep(POLL_S)


def available() -> bool:
    """Whether there is a server here, or can be: then it is installed."""
    try:
        if not _here():
            _install()
    except NoServer:
        return False
    return True


def real_s3(folder: Path) -> Iterator[S3Options]:
    """A server while it is used; skips, and in CI fails, where there can be none."""
    try:
        if not _here():
            _install()
    except NoServer as why:
        if os.environ.get("CI"):
            pytest.fail(f"no real S3 server in CI: {why}")
        pytest.skip(f"NOT TESTED AGAINST A REAL S3 SERVER: {why}")
    gateway = Gateway(folder)
    try:
        gateway.start()
        yield gateway.options
    finally:
        gateway.stop()
