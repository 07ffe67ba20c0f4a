"""Connections are cut in the middle of what etcd sends, and answers are lost."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.errors import OutcomeUnknown
from etcd_actions.etcd.api import Etcd, KeyRange, Put, Txn
from etcd_actions.model import LABEL_TERMINAL_STATUS_RECORDED
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.watch import ReflectorSettings
from tests.support.etcd_server import EtcdServer
from tests.support.load import Load, make_action, make_run
from tests.support.proxy import open_proxy, pieces_of
from tests.support.recording import RecordingRunService, RecordingSink, eventually, until_stored
from tests.support.scene import (
    PROCESSOR,
    REFLECTOR,
    all_marked,
    judge_delivery,
    judge_marks,
    reflecting,
)

pytestmark = pytest.mark.faults

ONE_RANGE = ReflectorSettings(ranges=1, dead_after=5.0, backoff=REFLECTOR.backoff)


async def put_many(etcd: Etcd, prefix: bytes, count: int) -> None:
    """``count`` revisions over 40 keys, several writers side by side."""

    async def write(writer: int) -> None:
        for n in range(writer, count, 16):
            await etcd.put(prefix + f"flyte/r{n % 40:02}".encode(), b"%d" % n + b"." * 100)

    async with trio.open_nursery() as nursery:
        for writer in range(16):
            nursery.start_soon(write, writer)


@pytest.mark.parametrize("settings", [ONE_RANGE, REFLECTOR], ids=["one-range", "ranges"])
@pytest.mark.parametrize(
    "sizes",
    [(600,), (20_000, 40_000), (150_000, 150_000), (190_000, 5_000), (1_000,) * 5],
    ids=str,
)
async def test_a_cut_during_catch_up(
    etcd: Etcd,
    shared_etcd: EtcdServer,
    prefix: bytes,
    sizes: tuple[int, ...],
    settings: ReflectorSettings,
) -> None:
    """More than two batches behind, cut within and between them: no hole, nothing twice."""
    sink = RecordingSink()
    with trio.fail_after(90):
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=2) as proxied,
            reflecting(proxied, prefix, sink, settings=settings) as reflector,
        ):
            await proxy.go_down()
            await put_many(etcd, prefix, 2_300)
            proxy.cut_after(*sizes)
            await proxy.come_up()
            history = await judge_delivery(sink, etcd, prefix)
            assert proxy.cuts_left == 0
            assert reflector.statistics().relists == {}
    assert len(history) == 2_300


@pytest.fixture
def large_etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd that takes a transaction which it will have to send in fragments.

    Its log could not be read again with an entry of more than 10 MB.
    """
    server = EtcdServer(tmp_path, flags=["--max-request-bytes=9600000"])
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("settings", [ONE_RANGE, REFLECTOR], ids=["one-range", "ranges"])
async def test_a_cut_in_the_fragments_of_one_revision(
    large_etcd: EtcdServer, prefix: bytes, settings: ReflectorSettings
) -> None:
    """90 puts of 100 KB in one revision come in fragments, cut thrice, and are given out once."""
    sink = RecordingSink()
    with trio.fail_after(120):
        async with (
            open_proxy(large_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=5) as etcd,
            open_etcd(large_etcd.endpoint, request_timeout=5) as direct,
            reflecting(etcd, prefix, sink, settings=settings) as reflector,
        ):
            await proxy.go_down()
            blob = bytes(100_000)
            keys = [prefix + f"flyte/r{n:03}".encode() for n in range(90)]
            await direct.put(keys[0], b"before")
            await direct.txn(Txn([], [Put(key, blob) for key in keys]))
            await direct.put(keys[0], b"after")
            # A member with the usual limit has to send it in fragments of about 2 MB.
            large_etcd.stop()
            large_etcd.flags = []
            large_etcd.start()
            proxy.cut_after(1_000_000, 3_000_000, 6_000_000)
            await proxy.come_up()
            history = await judge_delivery(sink, direct, prefix)
            assert proxy.cuts_left == 0
            assert reflector.statistics().relists == {}
    assert len(history) == 92


async def test_resets_at_random_under_load(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """Cuts with RST and FIN every few writes, through a proxy that chops: nothing is lost."""
    sink, chance = RecordingSink(), random.Random(3)
    with trio.fail_after(90):
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=1) as proxied,
            reflecting(proxied, prefix, sink) as reflector,
        ):

            def chop(data: bytes) -> Iterable[bytes]:
                return pieces_of(chance.randint(1, 400))(data)

            proxy.chunk = chop

            async def cut() -> None:
                await eventually(lambda: proxy.is_open)
                proxy.cut(reset=chance.random() < 0.5)

            await Load(etcd).play(
                [make_run(prefix, run, 4) for run in ("rc1", "rc2", "rc3")],
                rounds=3,
                strikes=range(10, 200, 20),
                strike=cut,
            )
            await judge_delivery(sink, etcd, prefix)
            assert reflector.statistics().relists == {}
    assert proxy.cuts >= 3


async def test_one_byte_at_a_time(etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes) -> None:
    """Frames that arrive byte by byte are put together again."""
    sink = RecordingSink()
    with trio.fail_after(90):
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint, request_timeout=5) as proxied,
        ):
            proxy.chunk = pieces_of(1)
            async with reflecting(proxied, prefix, sink):
                await put_many(etcd, prefix, 40)
                await judge_delivery(sink, etcd, prefix)


async def test_a_write_whose_answer_is_lost_is_of_unknown_outcome(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes
) -> None:
    """The transaction was applied, the connection went before the answer: OutcomeUnknown."""
    keys = KeyRange.of_prefix(prefix)
    with trio.fail_after(60):
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint) as proxied,
            trio.open_nursery() as nursery,
        ):
            await proxied.range(keys)
            held = proxy.hold_answers_after(b"needle")

            async def cut_when_applied() -> None:
                await held.wait()
                await until_stored(etcd, keys, bool)
                proxy.cut()

            nursery.start_soon(cut_when_applied)
            with pytest.raises(OutcomeUnknown):
                await proxied.txn(Txn([], [Put(prefix + b"x", b"needle")]))
    assert (await etcd.range(keys)).total == 1


@pytest.mark.parametrize("edited", [False, True], ids=["untouched", "edited-meanwhile"])
async def test_a_mark_whose_answer_is_lost_is_made_once(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, edited: bool
) -> None:
    """The mark was written, its answer lost: it is found, and not written again."""
    keys = KeyRange.of_prefix(prefix)
    action = make_action(prefix, "rl1", "a1")
    load = Load(etcd)
    await load.write(action.key, action.states[5])
    with trio.fail_after(60):
        async with (
            open_proxy(shared_etcd.port) as proxy,
            open_etcd(proxy.endpoint) as proxied,
        ):
            run_service = RecordingRunService(etcd)
            held = proxy.hold_answers_after(LABEL_TERMINAL_STATUS_RECORDED.encode())
            async with (
                open_processor(
                    proxied, prefix=prefix, run_service=run_service, settings=PROCESSOR
                ) as processor,
                trio.open_nursery() as nursery,
            ):
                # The mark may be made, and answers held, before the last range is listed.
                nursery.start_soon(processor.start_watching)
                await held.wait()
                await until_stored(etcd, keys, all_marked)
                if edited:
                    await load.write(action.key, action.states[6])
                proxy.cut()
                proxy.unstall()
                history = await judge_marks([processor], [run_service], etcd, prefix)
                marks = processor.statistics().marks
    assert sum(marks.values()) == 1, marks
    assert len(history) == (3 if edited else 2)
    if not edited:
        assert [one.revision for one in run_service.told] == [history[0].mod_revision]
