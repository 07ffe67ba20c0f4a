"""What becomes of connections: GOAWAY, flipped bits, and a server that is long away."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions._internal.backoff import Backoff
from etcd_actions.etcd import TransportName
from etcd_actions.etcd.api import Etcd
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.testing.proxy import Direction, flipping, open_proxy, saying_goaway
from etcd_actions.watch import ReflectorSettings
from tests.support.cluster import Certificates, EtcdCluster, ServerTls
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_run
from tests.support.patient import patiently
from tests.support.recording import RecordingRunService, RecordingSink, eventually
from tests.support.scene import (
    PROCESSOR,
    REFLECTOR,
    judge_delivery,
    judge_marks,
    processing,
    reflecting,
)

pytestmark = pytest.mark.faults

_ENHANCE_YOUR_CALM = 11
GOAWAYS = 6


def unchanged(_: Direction, data: bytes) -> bytes:
    return data


@pytest.mark.parametrize(
    ("error", "debug", "last_stream"),
    [(0, b"max_age", 2**31 - 1), (0, b"max_age", 1), (_ENHANCE_YOUR_CALM, b"too_many_pings", 0)],
    ids=["age", "age-refusing-streams", "too-many-pings"],
)
async def test_a_server_that_says_goaway_is_left_and_nothing_is_lost(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, error: int, debug: bytes, last_stream: int
) -> None:
    """On six connections, under load, for the watch and for the calls of a processor."""
    sink, run_service = RecordingSink(), RecordingRunService(etcd)
    with trio.fail_after(90):
        async with open_proxy(shared_etcd.port) as proxy:
            goaway = saying_goaway(error, debug, after=8_000, last_stream=last_stream)
            # For ever there would be no end: each would come in the middle of the same list.
            said = itertools.count(1)
            proxy.tamper = lambda: goaway() if next(said) <= GOAWAYS else unchanged
            async with (
                open_etcd(proxy.endpoint, request_timeout=2) as watcher,
                open_etcd(proxy.endpoint, request_timeout=2) as proxied,
                reflecting(watcher, prefix, sink),
                processing(proxied, prefix, run_service) as processor,
            ):
                runs = [make_run(prefix, "rg1", 4), make_run(prefix, "rg2", 4)]

                async def all_are_left() -> None:
                    await eventually(lambda: proxy.accepted > GOAWAYS)

                # How many bytes a round takes is not certain: answers can be put together.
                await Load(etcd).play(runs, rounds=2, strikes=[1], strike=all_are_left)
                await judge_marks([processor], [run_service], etcd, prefix)
                await judge_delivery(sink, etcd, prefix)


@pytest.mark.slow
async def test_etcd_never_finds_that_it_is_pinged_too_often(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """A quiet connection with the shortest keep-alive time for three of its pings."""
    sink = RecordingSink()
    with trio.fail_after(90):
        async with (
            open_etcd(shared_etcd.endpoint, keepalive_time=0.1) as quiet,
            reflecting(quiet, prefix, sink, settings=ReflectorSettings()) as reflector,
        ):
            began = trio.current_time()
            await eventually(lambda: trio.current_time() > began + 35)
            assert reflector.statistics().reconnects == {}
            await etcd.put(prefix + b"flyte/r1", b"1")
            await judge_delivery(sink, etcd, prefix)


@pytest.fixture
def encrypted(tmp_path: Path) -> Iterator[EtcdCluster]:
    certificates = Certificates(tmp_path / "ca")
    pair = certificates.issue("server", "127.0.0.1", "localhost")
    cluster = EtcdCluster(tmp_path, tls=ServerTls(pair=pair, ca=certificates.ca))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.mark.parametrize("direction", Direction, ids=lambda each: each.value)
async def test_flipped_bits_are_never_a_wrong_object_with_tls(
    encrypted: EtcdCluster, prefix: bytes, transport: TransportName, direction: Direction
) -> None:
    """Each ends its connection; what is delivered and marked is what etcd has, byte for byte."""
    sink = RecordingSink()
    port = encrypted.members[0].port
    with trio.fail_after(120):
        async with (
            open_etcd(encrypted.endpoints, tls=encrypted.tls) as direct,
            open_proxy(port) as proxy,
            open_etcd(
                proxy.endpoint, tls=encrypted.tls, transport=transport, request_timeout=2
            ) as watcher,
            open_etcd(
                proxy.endpoint, tls=encrypted.tls, transport=transport, request_timeout=2
            ) as proxied,
        ):
            run_service = RecordingRunService(direct)
            async with (
                reflecting(watcher, prefix, sink) as reflector,
                processing(proxied, prefix, run_service) as processor,
            ):
                # A watcher sends much less than it receives.
                every = 30_000 if direction is Direction.TO_CLIENT else 3_000
                proxy.tamper = flipping(direction, every, first=3_000)
                proxy.cut()
                await Load(direct).play([make_run(prefix, "rf1", 4), make_run(prefix, "rf2", 4)])
                await eventually(lambda: sum(reflector.statistics().reconnects.values()) > 1)
                proxy.tamper = None
                proxy.cut()
                await judge_marks([processor], [run_service], direct, prefix)
                await judge_delivery(sink, direct, prefix)


async def test_flipped_bits_on_a_plain_connection_stop_nothing(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """What a flip makes of a value nobody can know; whatever it makes of frames, all goes on."""
    sink = RecordingSink()
    with trio.fail_after(90):
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=1) as proxied,
            reflecting(proxied, prefix, sink) as reflector,
        ):
            proxy.tamper = flipping(Direction.TO_CLIENT, 3_000, seed=1)
            proxy.cut()
            await Load(etcd).play([make_run(prefix, "rf1", 4), make_run(prefix, "rf2", 4)])
            proxy.tamper = None
            proxy.cut()
            await eventually(lambda: reflector.statistics().streaming)
            last = (await etcd.put(prefix + b"flyte/rf3", b"after")).revision
            key = prefix + b"flyte/rf3"
            await sink.bell.until(lambda: key in sink.last())
            assert (sink.last()[key].mod_revision, sink.last()[key].value) == (last, b"after")


async def test_a_long_absence_at_the_start_and_in_between_costs_little(
    own_etcd: EtcdServer, prefix: bytes
) -> None:
    """Sixty longest waits, each at first: few tries, little work, and then all goes on."""
    cap = 0.1
    backoff = Backoff(0.02, cap)
    settings = replace(
        PROCESSOR, reflector=replace(REFLECTOR, backoff=backoff), queue=PROCESSOR.queue
    )
    with trio.fail_after(120):
        async with (
            open_proxy(own_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=1) as proxied,
            open_etcd(own_etcd.endpoint, request_timeout=2) as direct,
        ):
            run_service = RecordingRunService(direct)
            await patiently(direct.put, b"/elsewhere", b"")

            async def be_away() -> None:
                tries, spent = proxy.accepted, time.process_time()
                began = trio.current_time()
                await eventually(lambda: trio.current_time() > began + 60 * cap)
                # A wait is at least half of the longest; the stream and the calls each have theirs.
                assert 1 <= proxy.accepted - tries <= 4 * 60
                assert time.process_time() - spent < 0.5 * 60 * cap

            await trio.to_thread.run_sync(own_etcd.stop)
            async with open_processor(
                proxied, prefix=prefix, run_service=run_service, settings=settings
            ) as processor:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(processor.start_watching)
                    await be_away()
                    assert not processor.watching
                    await trio.to_thread.run_sync(own_etcd.start)
                await Load(direct).play([make_run(prefix, "ra1", 3)])
                await trio.to_thread.run_sync(own_etcd.stop)
                await be_away()
                await trio.to_thread.run_sync(own_etcd.start)
                await Load(direct, seed=1).play([make_run(prefix, "ra2", 3)])
                await judge_marks([processor], [run_service], direct, prefix)
