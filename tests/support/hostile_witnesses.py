"""Good clients beside hostile ones: a probe, an enqueuer and readers, each in a thread."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId, Phase
from tests.server.clients import ConnectClient, Failed, short
from tests.support import flyte

PATIENCE: Final = 90.0
"""Seconds after an attack until all must be as before; generous, since machines are shared."""

GOOD_ROOT: Final = ActionId("p", "d", "good", "a0", "o")


class Witness:
    """Something that goes on in a thread until it is stopped."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.problem: BaseException | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self.unblock()
        self._thread.join(PATIENCE)

    def unblock(self) -> None:
        """End what the thread waits for."""

    def work(self) -> None:
        """What it does."""
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self.work()
        except BaseException as error:
            # The test looks at it.
            self.problem = error


def waited(task: str) -> float:
    """Seconds that a thread, or the first one of a process, was ready and had no processor."""
    try:
        return int(Path(task, "schedstat").read_text().split()[1]) / 1e9
    except OSError:
        # It has ended, or the kernel does not count.
        return 0.0


class Probe(Witness):
    """Asks /healthz and /readyz ten times a second, on a new connection each time.

    Args:
        port: Where.
        pid: Who answers. What it waits for a processor does not count, nor what this thread
            does: on a machine that others load both wait long, and that says nothing of them.
    """

    def __init__(self, port: int, pid: int) -> None:
        super().__init__()
        self._port = port
        self._pid = pid
        self.asked = 0
        self.slowest = 0.0
        self.failed: list[str] = []

    def work(self) -> None:
        while not self._stopping.wait(0.1):
            for path in ("/healthz", "/readyz"):
                began = self._counting()
                try:
                    status = self.ask(path)
                except (OSError, http.client.HTTPException) as error:
                    self.failed.append(f"{path}: {error!r}")
                else:
                    if status != 200:
                        self.failed.append(f"{path}: {status}")
                self.slowest = max(self.slowest, self._counting() - began)
                self.asked += 1

    def _counting(self) -> float:
        """Now, in seconds of a clock that stands still while a processor is waited for."""
        return time.monotonic() - waited(f"/proc/{self._pid}") - waited("/proc/thread-self")

    def ask(self, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            return response.status
        finally:
            connection.close()


class Enqueuer(Witness):
    """Enqueues actions and ends them, one after the other, as an SDK and an executor do."""

    def __init__(self, client: ConnectClient) -> None:
        super().__init__()
        self._client = client
        self.ended: list[str] = []
        self.failed: list[str] = []

    def work(self) -> None:
        self._ask("Enqueue", pb.EnqueueRequest(action=flyte.task(GOOD_ROOT)))
        number = 0
        while not self._stopping.wait(0.05):
            number += 1
            action = ActionId("p", "d", "good", f"c{number}", "o")
            self._ask("Enqueue", pb.EnqueueRequest(action=flyte.task(action, "a0")))
            self._ask(
                "Update",
                pb.UpdateRequest(
                    action_id=flyte.identifier(action),
                    attempt=1,
                    status=flyte.status(Phase.SUCCEEDED),
                ),
            )
            if not self._stopping.is_set():
                self.ended.append(action.name)

    def _ask(self, method: str, request: Any) -> None:
        """Ask until it is accepted: the same again is safe, but after an end."""
        while not self._stopping.is_set():
            try:
                self._client.call(method, request)
            except Failed as error:
                if error.code == "failed_precondition" and method == "Update":
                    return
                self.failed.append(f"{method}: {error}")
            except (OSError, http.client.HTTPException) as error:
                self.failed.append(f"{method}: {error!r}")
            else:
                return
            self._stopping.wait(0.1)


class Reader(Witness):
    """Reads the updates of the enqueuer's actions; opens the stream again when it ends."""

    def __init__(self, open_stream: Callable[[pb.WatchForUpdatesRequest], Any]) -> None:
        super().__init__()
        self._open_stream = open_stream
        self._stream: Any = None
        self.seen: set[str] = set()
        self.cuts: list[str] = []

    def work(self) -> None:
        request = pb.WatchForUpdatesRequest(parent_action_id=flyte.identifier(GOOD_ROOT))
        while not self._stopping.is_set():
            why = "it ended"
            try:
                self._stream = self._open_stream(request)
                for message in self._stream:
                    state = short(message)
                    if state.phase == Phase.SUCCEEDED:
                        self.seen.add(state.name)
            except (Failed, OSError, http.client.HTTPException, ValueError, grpc.RpcError) as error:
                why = repr(error)
            except AttributeError as error:
                # http.client, when the socket is closed under its hands.
                why = repr(error)
            if not self._stopping.is_set():
                self.cuts.append(why)
                self._stopping.wait(0.1)

    def unblock(self) -> None:
        if self._stream is not None:
            self._stream.close()


class GrpcStream:
    """grpcio's stream, closed as the other one is."""

    def __init__(self, call: Any) -> None:
        self._call = call

    def __iter__(self) -> Iterator[Any]:
        return iter(self._call)

    def close(self) -> None:
        self._call.cancel()
