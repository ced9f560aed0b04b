"""S3 servers for the tests of stores: moto's, and a real one, each started once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from moto.server import ThreadedMotoServer

from smile.store.objects import S3Options
from tests.s3_server import real_s3


@pytest.fixture(scope="session")
def moto_s3() -> Iterator[S3Options]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Options(f"http://{host}:{port}", "key", "secret")
    server.stop()


@pytest.fixture(scope="session")
def ceph_s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Options]:
    yield from real_s3(tmp_path_factory.mktemp("ceph"))
