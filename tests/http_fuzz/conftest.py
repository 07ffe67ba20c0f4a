"""One server for all examples."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.http_fuzz.served import Served
from tests.http_fuzz.transcripts import Transcript, record
from tests.support.etcd_server import EtcdServer


@pytest.fixture(scope="session")
def one_served(
    etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("blobs")
    served = Served(etcd_server.endpoint, b"/fuzz/taskactions/", folder)
    served.start()
    yield served
    served.stop()


@pytest.fixture
def served(one_served: Served) -> Iterator[Served]:
    """It must have recovered when a test's examples are over."""
    one_served.start()
    yield one_served
    one_served.start()
    one_served.check_recovered()


@pytest.fixture(scope="session")
def transcripts(one_served: Served) -> list[Transcript]:
    """What good clients send."""
    return record(one_served.targets)
