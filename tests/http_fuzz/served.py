"""A listener to throw at: the service and its monitoring, in a thread of their own.

The server may die of an example: then the example fails, and the next one gets a new server, so
that hypothesis can look for a smaller one.
"""

from __future__ import annotations

import http.client
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import hypothesis
import trio
from hypothesis import HealthCheck, Phase, settings

from etcd_actions import ActionsClient, open_actions_client, open_etcd
from etcd_actions.blobs import open_blob_store
from etcd_actions.monitoring import open_monitoring
from etcd_actions.registry.registry import open_registry
from etcd_actions.runs.run_index import open_run_index
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.attempt_logs import LogSources
from etcd_actions.web import Bind
from tests.support.hostile_wire import Target, pour, reset

SEED: Final = os.environ.get("ETCD_ACTIONS_FUZZ_SEED", "")
"""Draws other examples than those that are always drawn."""

FACTOR: Final = float(os.environ.get("ETCD_ACTIONS_FUZZ_FACTOR", "1"))
"""Draws so many times more of them."""

_LOOPBACK: Final = Bind("127.0.0.1", 0)
_PATIENCE: Final = 20.0
_LISTEN: Final = 0.02
_MORE_TASKS: Final = 20

T = TypeVar("T")
_Test = TypeVar("_Test", bound=Callable[..., None])


def fuzz(examples: int) -> Callable[[_Test], _Test]:
    """So many examples: always the same ones, unless a seed is given; none is too slow."""

    def wrap(test: _Test) -> _Test:
        chosen = settings(
            max_examples=max(1, int(examples * FACTOR)),
            derandomize=not SEED,
            database=None,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
            # The server is new after each failure: a few hundred tries find a smaller one.
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
        )
        return chosen(hypothesis.seed(int(SEED))(test) if SEED else test)

    return wrap


class Served:
    """The server, started again when it has died."""

    def __init__(self, endpoint: str, prefix: bytes, folder: Path) -> None:
        self._endpoint = endpoint
        self._prefix = prefix
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stop: trio.Event
        self._token: trio.lowlevel.TrioToken
        self._tasks = 0
        self._failures: dict[str, int] = {}
        self.client: ActionsClient
        self.server: ActionsServer
        self.targets: dict[str, Target] = {}
        self.death: BaseException | None = None

    def start(self) -> None:
        """Start it, unless it runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        self.death = None
        self._failures = {}
        self._ready.clear()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        assert self._ready.wait(_PATIENCE), "it does not start"
        assert self.death is None, self.death
        for kind in self.targets:
            self.check(kind)
        # Its workers start with the election.
        give_up = time.monotonic() + _PATIENCE
        while not self.look(lambda: self.client.statistics().elected):
            assert time.monotonic() < give_up, "it is not elected"
            time.sleep(0.01)
        while self._tasks != (tasks := self.look(self._count_tasks)):
            self._tasks = tasks
            time.sleep(0.1)  # Until two counts agree.

    def stop(self) -> None:
        """Stop it, unless it has died."""
        if self._thread is not None and self._thread.is_alive():
            self.look(self._stop.set)
        if self._thread is not None:
            self._thread.join(_PATIENCE)
            assert not self._thread.is_alive(), "it does not stop"

    def look(self, function: Callable[[], T]) -> T:
        """Call something where the server runs."""
        return trio.from_thread.run_sync(function, trio_token=self._token)

    def throw(self, kind: str, chunks: Sequence[bytes], end: str = "fin") -> None:
        """Send chunks, leave in some way, and see that the next client is served."""
        self.start()
        sock = self.targets[kind].dial()
        pour(sock, chunks)
        if end == "reset":
            reset(sock)
        else:
            try:
                if end == "fin":
                    sock.shutdown(1)
                if end != "close":
                    sock.settimeout(_LISTEN)
                    while sock.recv(65536):
                        continue
            except OSError:
                end = "close"
            sock.close()
        self.check(kind)

    def check(self, kind: str) -> None:
        """A good request on a new connection is answered."""
        give_up = time.monotonic() + _PATIENCE
        while True:
            assert self.death is None, f"the server has died: {self.death!r}"
            try:
                status = self._ask(kind)
            except (OSError, http.client.HTTPException):
                # It may be on its way out, or turn somebody away for a moment.
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)
            else:
                assert status == 200
                return

    def check_recovered(self) -> None:
        """Nothing is left of all the clients that were there, and nothing of ours broke."""
        give_up = time.monotonic() + _PATIENCE
        while (left := self._left_behind()) and time.monotonic() < give_up:
            time.sleep(0.05)
        assert not left, left
        assert not self.client.containment.parked
        # What a client breaks is a protocol error, and no failure of a boundary's inside.
        failures, self._failures = self._failures, self.client.containment.failures
        assert self._failures == failures, (failures, self._failures)

    def _left_behind(self) -> dict[str, Any]:
        streams = self.look(lambda: self.server.statistics().open_streams)
        tasks = self.look(self._count_tasks)
        found = {"streams": streams, "tasks": max(0, tasks - self._tasks - _MORE_TASKS)}
        return {name: count for name, count in found.items() if count}

    def _ask(self, kind: str) -> int:
        target = self.targets[kind]
        connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=_PATIENCE)
        try:
            if kind == "monitoring":
                connection.request("GET", target.good_path.decode())
            else:
                headers = {"content-type": "application/json"}
                connection.request("POST", target.good_path.decode(), b"{}", headers)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()

    @staticmethod
    def _count_tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            # The example that it died of fails by it.
            self.death = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._stop = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        settings = ServerSettings(
            bind=_LOOPBACK, rate=0, message_bytes=256 * 1024, keepalive=1, grace=1
        )
        async with (
            open_etcd(self._endpoint) as etcd,
            open_actions_client(etcd, prefix=self._prefix) as self.client,
        ):
            await self.client.start_watching()
            containment = self.client.containment
            async with (
                open_monitoring(
                    self.client, etcd, _LOOPBACK, prefix=self._prefix, silence_limit=60
                ) as monitoring,
                open_run_index(etcd, self.client.keys, containment=containment) as index,
                open_registry(
                    etcd, self.client.store, self.client.keys, containment=containment
                ) as registry,
                open_actions_server(
                    self.client,
                    settings,
                    front=FrontDoor(
                        client=self.client,
                        keepalive=1,
                        blobs=open_blob_store(self._folder),
                        reads_local_files=True,
                        logs=LogSources(client=self.client),
                        index=index,
                        registry=registry,
                        projects_with_runs=index.projects,
                    ),
                ) as self.server,
            ):
                self.targets = {
                    "service": Target(self.server.address.port, source=""),
                    "monitoring": Target(monitoring.address.port, "monitoring", source=""),
                }
                self._ready.set()
                await self._stop.wait()
