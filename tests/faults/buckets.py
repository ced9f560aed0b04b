"""S3 servers that storage is tried on: moto's, in this process, and a real one."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import obstore
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from tests.faults.judge import Bucket
from tests.s3_server import ACCESS_KEY, SECRET_KEY, Gateway

ACCOUNT = "123456789012"


@dataclass(frozen=True, slots=True)
class S3Server:
    """Where a server listens, what it asks for, and whether it is a real one."""

    port: int
    access_key: str = "access"
    secret_key: str = "secret"
    real: bool = False

    def bucket(self, name: str) -> Bucket:
        """For the judge, who reads it beside storage."""
        return RealBucket(name, self) if self.real else MotoBucket(name)


@dataclass(frozen=True)
class MotoBucket:
    """A bucket of the S3 server in this process."""

    name: str

    @property
    def _objects(self) -> Any:
        return s3_backends[ACCOUNT]["global"].buckets[self.name].keys

    def list(self) -> list[str]:
        return sorted(self._objects)

    def read(self, key: str) -> bytes:
        found = self._objects.get(key)
        if found is None:
            raise FileNotFoundError(key)
        return bytes(found.value)


class RealBucket:
    """A bucket as its server gives it, with no fault in between."""

    def __init__(self, name: str, server: S3Server) -> None:
        self._store = S3Store(
            name,
            endpoint=f"http://127.0.0.1:{server.port}",
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
            region="us-east-1",
            virtual_hosted_style_request=False,
            client_options={"allow_http": True, "timeout": timedelta(seconds=60)},
        )

    def list(self) -> list[str]:
        return sorted(row["path"] for page in obstore.list(self._store) for row in page)

    def read(self, key: str) -> bytes:
        """Raises `FileNotFoundError`."""
        return bytes(obstore.get(self._store, key).bytes())


@contextmanager
def moto() -> Iterator[S3Server]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it tells of every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield S3Server(server.get_host_and_port()[1])
    finally:
        server.stop()


@contextmanager
def ceph() -> Iterator[S3Server]:
    """Ceph's gateway; see `tests.s3_server.available`."""
    with TemporaryDirectory(prefix="sf") as folder:
        gateway = Gateway(Path(folder) / "ceph")
        try:
            gateway.start()
            yield S3Server(gateway.port, ACCESS_KEY, SECRET_KEY, real=True)
        finally:
            gateway.stop()
