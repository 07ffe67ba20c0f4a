"""A whole process beside hostile clients: it goes on answering probes, enqueues and readers.

Each attack runs in a process of its own, against a process with few descriptors, while three
witnesses run beside it from another address: a probe, an enqueuer and two readers.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from etcd_actions.testing import EtcdFactory
from tests.support.etcd_server import EtcdServer
from tests.support.hostile_main import MODULES
from tests.support.hostile_registry import ATTACKS
from tests.support.hostile_siege import Siege, besiege, until
from tests.support.hostile_witnesses import PATIENCE, waited

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(
        sys.platform != "linux", reason="attacks come from other addresses of 127.0.0.0/8"
    ),
]

assert MODULES  # Their import has filled the list.
PLAIN = [(name, kind) for kind in ("service", "monitoring") for name in ATTACKS]
PLAIN = [(name, kind) for name, kind in PLAIN if kind in ATTACKS[name].targets]
TLS = [name for name, attack in ATTACKS.items() if "tls" in attack.targets]

# What holds every connection that there is room for turns away new ones, also good ones.
CROWDED = {
    ("idle_from_many_addresses", "service"): ("enqueuer",),
    ("idle_from_many_addresses", "monitoring"): ("probe",),
}

# What an operator sees of it, by attack: one of these at least grows.
_PROTOCOL = ("etcd_actions_http_protocol_errors_total",)
_CLOSED = ("etcd_actions_http_connections_closed_total", "etcd_actions_http_connections_refused")
_CALLS = ("etcd_actions_requests_total",)
_CONTAINED = ("etcd_actions_contained_failures_total",)
COUNTED = {
    "idle": _CLOSED,
    "idle_after_a_request": _CLOSED,
    "slow": _CLOSED,
    "connect_and_reset": _PROTOCOL + _CONTAINED,
    "illegal_frames": _PROTOCOL,
    "illegal_headers": _PROTOCOL,
    "illegal_requests": ("etcd_actions_http_requests_refused_total",),
    "hpack_bombs": _PROTOCOL,
    "floods_of_continuations": _PROTOCOL,
    "compression_bombs": _CALLS,
    "health_watches": _CALLS,
    "garbage_enqueues": _CALLS,
}

Get = Callable[[], Siege]


class _Keeper:
    """One siege for all attacks, and a new one for the next when it fell."""

    def __init__(self, make: Callable[[ExitStack], Siege]) -> None:
        self._make = make
        self._stack = ExitStack()
        self._siege: Siege | None = None

    def get(self) -> Siege:
        if self._siege is None or not self._siege.lives:
            self.close()
            self._siege = self._make(self._stack)
        return self._siege

    def close(self) -> None:
        self._siege = None
        self._stack.close()


@pytest.fixture(scope="module")
def get_siege(etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Get]:
    keeper = _Keeper(
        lambda stack: stack.enter_context(
            besiege(tmp_path_factory.mktemp("siege"), etcd_server.endpoint, "/hostile/")
        )
    )
    yield keeper.get
    keeper.close()


@pytest.fixture(scope="module")
def get_tls_siege(
    etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Get]:
    keeper = _Keeper(
        lambda stack: stack.enter_context(
            besiege(
                tmp_path_factory.mktemp("siege"), etcd_server.endpoint, "/hostile-tls/", tls=True
            )
        )
    )
    yield keeper.get
    keeper.close()


@pytest.mark.parametrize(("name", "target"), PLAIN)
def test_nobody_notices_an_attack(get_siege: Get, name: str, target: str) -> None:
    with get_siege().attacked(
        name, target, allowed=CROWDED.get((name, target), ()), counted=COUNTED.get(name, ())
    ):
        pass


@pytest.mark.parametrize("name", TLS)
def test_nobody_notices_an_attack_on_tls(get_tls_siege: Get, name: str) -> None:
    allowed = CROWDED.get((name, "service"), ())
    with get_tls_siege().attacked(name, "service", allowed=allowed):
        pass


def test_etcd_restarts_while_all_descriptors_are_wanted(
    etcd_factory: EtcdFactory, tmp_path: Path
) -> None:
    etcd = etcd_factory()
    with besiege(tmp_path, etcd.endpoint, "/hostile/") as siege:
        for name in ("idle", "idle_from_many_addresses"):
            with siege.attacked(name, "service", allowed=("probe", "enqueuer")):
                etcd.stop()
                time.sleep(1.0)  # How long etcd is away.
                etcd.start()
                until(lambda: siege.probe.ask("/readyz") == 200)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("idle", "service"),
        ("idle", "monitoring"),
        ("never_reading", "service"),
        ("slow_bodies", "service"),
        ("windows_closed", "service"),
        ("many_streams", "service"),
        ("reflection_flood", "service"),
        ("health_watches", "service"),
    ],
)
def test_a_signal_ends_it_in_order_under_attack(
    etcd_server: EtcdServer, tmp_path: Path, name: str, target: str
) -> None:
    with besiege(tmp_path, etcd_server.endpoint, "/hostile-end/", "--grace", "2s") as siege:
        with siege.held(name, target):
            siege.service.signal(signal.SIGTERM)
            began = time.monotonic()
            task = f"/proc/{siege.service.pid}"
            before = starved = waited(task)
            # What it waits for a processor does not count: others load the machine.
            while (code := siege.service.process.poll()) is None:
                starved = max(starved, waited(task))
                assert time.monotonic() - began < PATIENCE, siege.tail()
                time.sleep(0.02)  # A process rings no bell, and no trio runs here.
            took = time.monotonic() - began - (starved - before)
        assert code == 0, siege.tail()
        # The grace is 2 s.
        assert took < 7, siege.tail()
