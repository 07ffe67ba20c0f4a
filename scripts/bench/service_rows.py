"""Rows about the service, ``etcd-actions run``: calls, and streams."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import trio

from etcd_actions import ActionId
from etcd_actions.model import DEFAULT_KEY_PREFIX
from scripts.bench.processes import child, cpu_seconds, etcd_server, service
from scripts.bench.results import OURS, Figures
from scripts.bench.service_load import ServiceLoad
from scripts.bench.setting import Setting, Take
from scripts.bench.streams import Stream
from scripts.bench.writer import Work
from scripts.bench.writing import do, on_own_etcd

TOGETHER = 16
ACTIONS = 10_000
_OPENED = 40
_STREAM_SECONDS = 20.0


def enqueuing(kind: Literal["connect", "grpc"]) -> Callable[[Setting], Any]:
    """A row: enqueues through the service, and through the library."""

    @contextmanager
    def prepared(setting: Setting) -> Iterator[Take]:
        first = itertools.count(0, 1_000_000)

        def take(side: str) -> Figures:
            if side != OURS:
                return on_own_etcd(setting, "enqueue-roots", setting.scaled(5_000), TOGETHER)
            with _serving(setting) as (_, address, process, directory):
                host, _, port = address.rpartition(":")
                found: Figures = {}
                # The first pass imports and connects, and does not count.
                for seconds in (0.5, setting.seconds):
                    service_load = ServiceLoad(
                        kind=kind, host=host, port=int(port), together=TOGETHER,
                        seconds=seconds, first=next(first),
                    )  # fmt: skip
                    before = cpu_seconds(process)
                    with child(
                        "service_load", service_load.to_json(), directory / "service_load.log"
                    ) as client:
                        result = client.receive("result", seconds + 60)
                    spent = cpu_seconds(process) - before
                    found = {name: value for name, value in result.items() if name != "event"}
                    found["cpu_ms"] = 1000 * spent / found["calls"]
                return found

        yield take

    return prepared


@contextmanager
def leaf(setting: Setting) -> Iterator[Take]:
    """A row: a stream on a leaf of a large run, and of a small one."""
    with _serving(setting) as (etcd, address, process, directory):
        for run, count in (("large", setting.scaled(ACTIONS)), ("small", 2)):
            do(
                Work(name="fill", target=etcd, count=count, run=run, prefix=DEFAULT_PREFIX),
                directory,
            )

        def take(side: str) -> Figures:
            run = "large" if side == OURS else "small"
            before = cpu_seconds(process)
            took = trio.run(_open_streams, address, ActionId("p", "d", run, "c1", ""))
            spent = cpu_seconds(process) - before
            return {"cpu_ms": 1000 * spent / _OPENED, "p50_ms": 1000 * sorted(took)[_OPENED // 2]}

        # Once unmeasured: imports, and the first connection.
        take("")
        yield take


DEFAULT_PREFIX = DEFAULT_KEY_PREFIX.decode()


async def _open_streams(address: str, parent: ActionId) -> list[float]:
    """Seconds until each of some streams had its snapshot, one after the other."""
    took = []
    with trio.fail_after(_STREAM_SECONDS):
        for _ in range(_OPENED):
            began = trio.current_time()
            async with trio.open_nursery() as nursery:
                stream = Stream(parent)
                nursery.start_soon(stream.follow, address)
                await stream.ready.wait()
                took.append(trio.current_time() - began)
                nursery.cancel_scope.cancel("the snapshot is there")
    return took


@contextmanager
def _serving(setting: Setting) -> Iterator[tuple[str, str, Any, Path]]:
    with tempfile.TemporaryDirectory(dir=setting.directory) as name:
        directory = Path(name)
        with (
            etcd_server(setting.etcd, directory) as server,
            service(server.address, directory / "service.log") as (address, process),
        ):
            yield server.address, address, process, directory
