"""Thousands of the front door's streams, unread and read: others are served, and memory is bounded.

Unlike in ``test_hostile_clients.py`` the service allows as many streams as are wanted of it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support import hostile_front
from tests.support.etcd_server import EtcdServer
from tests.support.hostile_registry import ATTACKS
from tests.support.hostile_siege import Siege, besiege

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        sys.platform != "linux", reason="attacks come from other addresses of 127.0.0.0/8"
    ),
]

FRONT = [name for name, each in ATTACKS.items() if each.targets == hostile_front.FRONT]
_FLAGS = ("--max-streams", "5000", "--rate-limit", "0")


# Of 4,000 streams in the middle of an attack.
_MORE_MEMORY = 300 * 1024 * 1024


@pytest.fixture(scope="module")
def siege(etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    directory = tmp_path_factory.mktemp("siege")
    blobs = ("--blob-dir", str(directory / "blobs"))
    with besiege(directory, etcd_server.endpoint, "/streams/", *_FLAGS, *blobs) as siege:
        yield siege


@pytest.mark.parametrize("name", FRONT)
def test_nobody_notices_thousands_of_streams(siege: Siege, name: str) -> None:
    before = siege.usage().memory
    with siege.attacked(name, "service"):
        assert siege.probe.ask("/readyz") == 200
        siege.until_all_see(10)
        assert siege.usage().memory < before + _MORE_MEMORY
