"""The same promises on three members with TLS and users, while members and leaders go."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from etcd_actions.codecs import json
from etcd_actions.errors import OutcomeUnknown, Unauthenticated, Unavailable
from etcd_actions.etcd import EtcdClient, TransportName, User
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Etcd,
    KeyRange,
    Txn,
    WatchCreate,
)
from etcd_actions.storage.store import Store
from tests.faults.conftest import REQUEST_TIMEOUT, Way
from tests.support import oracle
from tests.support.cluster import WORKER, EtcdCluster, Member
from tests.support.load import Load, make_action, make_run, root_of, with_annotation
from tests.support.oracle import Skipped
from tests.support.patient import compact, patiently
from tests.support.proxy import open_proxy, pieces_of
from tests.support.recording import RecordingRunService, RecordingSink, eventually
from tests.support.scene import (
    DEAD_AFTER,
    UNHURRIED,
    judge_delivery,
    judge_marks,
    processing,
    reflecting,
    subscribed,
)

pytestmark = pytest.mark.faults

_ROOT = Path(__file__).parents[2]
# For machines that are slow, or do something else.
_SLACK = 6.0
RUNS = ["rq1", "rq2", "rq3"]


@pytest.fixture
async def direct(cluster: EtcdCluster) -> AsyncIterator[Etcd]:
    """For writers and judges: patient, and over the default transport."""
    async with Way(cluster, "grpc").open(request_timeout=3) as etcd:
        yield etcd


async def kill_in_use(way: Way, etcd: EtcdClient) -> None:
    """Kill the member that a client uses, and start it again once the others are in order."""
    member = way.in_use(etcd)
    member.kill()
    await trio.to_thread.run_sync(way.cluster.leader)
    await trio.to_thread.run_sync(way.cluster.start_member, member)


@contextmanager
def suspended(*members: Member) -> Iterator[None]:
    """Stop them; let them go on however the block ends."""
    with ExitStack() as stack:
        for member in members:
            member.suspend()
            stack.callback(member.resume)
        yield


async def watch_until_lost(etcd: Etcd, keys: KeyRange) -> None:
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, keys, 1))
        while True:
            for response in await stream.receive():
                if response.canceled:
                    raise Unavailable(response.cancel_reason)


@pytest.mark.parametrize("fault", ["kill", "move"])
async def test_a_reflector_loses_and_doubles_nothing(
    way: Way, direct: Etcd, prefix: bytes, fault: str
) -> None:
    """The member in use is killed thrice, or the leader moves four times, under load."""
    sink = RecordingSink()
    with trio.fail_after(120):
        async with (
            way.open() as etcd,
            reflecting(etcd, prefix, sink) as reflector,
        ):
            load = Load(direct)

            async def kill() -> None:
                # Else it would hit nothing that the last one did not.
                await eventually(lambda: reflector.statistics().streaming)
                await kill_in_use(way, etcd)

            async def move() -> None:
                await trio.to_thread.run_sync(way.cluster.move_leader)

            await load.play(
                [make_run(prefix, run, 4) for run in RUNS],
                rounds=5,
                strikes=(30, 90, 150) if fault == "kill" else range(20, 140, 30),
                strike=kill if fault == "kill" else move,
            )
            history = await judge_delivery(sink, direct, prefix)
            assert len(history) > 200
            statistics = reflector.statistics()
    assert statistics.relists == {}
    if fault == "kill":
        assert sum(statistics.reconnects.values()) >= 3


async def test_a_processor_tells_and_marks_everything(
    way: Way, direct: Etcd, prefix: bytes
) -> None:
    """A member is killed, the leader moves, and again: each ending is marked, and just once."""
    with trio.fail_after(120):
        async with way.open() as etcd:
            run_service = RecordingRunService(direct)
            async with (
                processing(etcd, prefix, run_service) as processor,
                subscribed(processor, [root_of(run) for run in RUNS]) as updates,
            ):
                load = Load(direct, seed=1)

                async def strike() -> None:
                    await kill_in_use(way, etcd)
                    await trio.to_thread.run_sync(way.cluster.move_leader)

                runs = [make_run(prefix, run, 4) for run in RUNS]
                await load.play(runs, rounds=2, strikes=(30, 100), strike=strike)
                history = await judge_marks([processor], [run_service], direct, prefix)
                keys = [action.key for run in runs for action in run]
                await eventually(lambda: not oracle.subscriber_problems(updates, history, keys))
    assert run_service.told


async def test_a_stopped_member_is_left(way: Way, direct: Etcd, prefix: bytes) -> None:
    """The member in use answers nothing any more: another one is used, soon, and stays so."""
    sink = RecordingSink()
    with trio.fail_after(90):
        async with (
            way.open() as etcd,
            reflecting(etcd, prefix, sink) as reflector,
            trio.open_nursery() as nursery,
        ):
            load = Load(direct)
            nursery.start_soon(load.play, [make_run(prefix, run, 4) for run in RUNS])
            await load.reached(20)
            member = way.in_use(etcd)
            with suspended(member):
                with trio.fail_after(DEAD_AFTER * 7 / 6 + _SLACK):
                    await eventually(lambda: way.in_use(etcd) is not member)
                with trio.fail_after(DEAD_AFTER + _SLACK):
                    await eventually(lambda: reflector.statistics().streaming)
                await load.reached(10_000)
                await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}


async def test_a_token_is_asked_for_elsewhere(
    way: Way, direct: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    """The member in use stops before it could give a token: another one is asked, soon."""
    file = tmp_path / "password"
    file.write_text("wrong")
    with trio.fail_after(60):
        async with way.open(user=User(name=WORKER.name, password_file=file)) as etcd:
            with pytest.raises(Unauthenticated):
                await patiently(etcd.put, prefix, b"")
            file.write_text(str(WORKER.password))
            with suspended(way.in_use(etcd)), trio.fail_after(3 * REQUEST_TIMEOUT + _SLACK):
                await patiently(etcd.put, prefix, b"")


async def test_a_member_that_was_away_shows_nothing_old(
    way: Way, direct: Etcd, prefix: bytes
) -> None:
    """A client that knows only this one: it waits, or is told what is new, never what was."""
    follower = way.cluster.followers()[0]
    key = prefix + b"flyte/r1"
    sink = RecordingSink()
    before, after = RecordingSink(), RecordingSink()
    with trio.fail_after(90):
        async with (
            way.open(follower.endpoint) as etcd,
            way.open(follower.endpoint) as other,
            reflecting(etcd, prefix, sink) as reflector,
        ):
            await patiently(direct.put, key, b"old")
            await sink.bell.until(lambda: bool(sink.changes))
            async with reflecting(other, prefix, before):
                assert before.last()[key].value == b"old"
            with suspended(follower):
                for n in range(50):
                    await patiently(direct.put, prefix + b"flyte/r%d" % (n % 5), b"%d" % n)
                newest = (await patiently(direct.put, key, b"new")).revision
            # The list of one that starts anew, and what is read meanwhile.
            async with reflecting(other, prefix, after):
                assert after.last()[key].mod_revision == newest
            assert (await patiently(etcd.range, KeyRange.of_key(key))).revision >= newest
            await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}


async def test_a_member_that_may_be_behind_answers_no_compare(way: Way, prefix: bytes) -> None:
    """A transaction that reads nothing is one that etcd answers without asking the others."""
    made = Compare(prefix, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, 0)
    with trio.fail_after(60):
        async with way.open() as etcd:
            assert (await Store(etcd).read_txn(Txn([made], []))).succeeded
            stopped = [each for each in way.cluster.members if each is not way.in_use(etcd)]
            with suspended(*stopped), pytest.raises(Unavailable):
                await Store(etcd).read_txn(Txn([made], []))


async def test_without_a_majority_nothing_is_promised_that_does_not_hold(
    way: Way, direct: Etcd, prefix: bytes
) -> None:
    """Two of three are stopped: what was "not written" never is; what was written is there.

    Reads and streams fail; after the end of it all goes on, and nothing is lost.
    """
    sink = RecordingSink()
    kept, refused, unknown = set[bytes](), set[bytes](), set[bytes]()
    keys = KeyRange.of_prefix(prefix)
    with trio.fail_after(120):
        async with (
            way.open() as etcd,
            way.open() as watcher,
            reflecting(watcher, prefix, sink) as reflector,
        ):

            async def write(key: bytes) -> None:
                try:
                    await etcd.put(key, b"v")
                except OutcomeUnknown:
                    unknown.add(key)
                except Unavailable:
                    refused.add(key)
                else:
                    kept.add(key)

            async def write_on(writer: int, enough: Callable[[], bool]) -> None:
                n = 0
                while not enough():
                    await write(prefix + b"flyte/r%d-%03d" % (writer, n))
                    n += 1
                    await trio.sleep(0.05)  # The pace of the load.

            async def write_some(name: bytes, count: int) -> None:
                enough = len(kept) + count
                for n in itertools.count():
                    if len(kept) == enough:
                        return
                    await write(prefix + b"flyte/%s-%03d" % (name, n))
                    await trio.sleep(0.05)  # The pace of the load.

            await write_some(b"before", 5)
            stopped = [each for each in way.cluster.members if each is not way.in_use(etcd)]
            with suspended(*stopped):
                async with trio.open_nursery() as nursery:
                    for writer in range(4):
                        nursery.start_soon(
                            write_on, writer, lambda: len(refused) >= 4 and len(unknown) >= 2
                        )
                with pytest.raises(Unavailable) as caught:
                    await etcd.range(keys)
                assert not isinstance(caught.value, OutcomeUnknown)
                with pytest.raises(Unavailable):
                    await watch_until_lost(etcd, keys)
            await trio.to_thread.run_sync(way.cluster.wait_healthy)
            await write_some(b"after", 1)
            history = await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}
    there = {entry.key for entry in history}
    assert len(kept & there) == len(kept) >= 6
    assert not refused & there
    assert there <= kept | unknown


async def test_cuts_on_the_way(way: Way, direct: Etcd, prefix: bytes) -> None:
    """RST and FIN in the middle of TLS records that come in pieces: nothing is lost."""
    sink, chance = RecordingSink(), random.Random(5)
    with trio.fail_after(120):
        async with (
            open_proxy(way.cluster.members[0].port) as proxy,
            way.open(proxy.endpoint) as etcd,
            reflecting(etcd, prefix, sink) as reflector,
        ):

            def chop(data: bytes) -> Iterable[bytes]:
                return pieces_of(chance.randint(50, 2000))(data)

            proxy.chunk = chop
            load = Load(direct)

            async def cut() -> None:
                await eventually(lambda: proxy.is_open)
                proxy.cut(reset=chance.random() < 0.5)

            await load.play(
                [make_run(prefix, run, 4) for run in RUNS],
                rounds=2,
                strikes=range(10, 130, 20),
                strike=cut,
            )
            await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}
    assert proxy.cuts >= 3


async def test_catching_up_through_cuts(way: Way, direct: Etcd, prefix: bytes) -> None:
    """Two batches behind, cut within them: no hole, nothing twice."""
    sink = RecordingSink()
    with trio.fail_after(120):
        async with (
            open_proxy(way.cluster.members[0].port) as proxy,
            way.open(proxy.endpoint) as etcd,
            reflecting(etcd, prefix, sink) as reflector,
        ):
            await proxy.go_down()

            async def write(writer: int) -> None:
                for n in range(writer, 1_500, 16):
                    key = prefix + b"flyte/r%02d" % (n % 40)
                    await patiently(direct.put, key, b"%d" % n + b"." * 100)

            async with trio.open_nursery() as nursery:
                for writer in range(16):
                    nursery.start_soon(write, writer)
            proxy.cut_after(30_000, 60_000, 20_000)
            await proxy.come_up()
            history = await judge_delivery(sink, direct, prefix)
            assert proxy.cuts_left == 0
            assert reflector.statistics().relists == {}
    assert len({entry.value for entry in history}) == 1_500


async def test_history_is_compacted_while_cut_off(
    own_cluster: EtcdCluster, transport: TransportName, prefix: bytes
) -> None:
    """And the member in use is another one afterwards: listed, compared, nothing lost."""
    way, sink = Way(own_cluster, transport), RecordingSink()
    keys = [prefix + b"flyte/r%d" % n for n in range(8)]
    with trio.fail_after(90):
        async with (
            Way(own_cluster, "grpc").open(request_timeout=3) as direct,
            open_proxy(own_cluster.members[0].port) as one,
            open_proxy(own_cluster.members[1].port) as two,
            way.open(one.endpoint, two.endpoint, request_timeout=5) as etcd,
            reflecting(etcd, prefix, sink, settings=UNHURRIED) as reflector,
        ):
            made = {(await patiently(direct.put, key, b"0")).revision for key in keys}
            await sink.bell.until(lambda: made <= {each.mod_revision for each in sink.changes})
            await one.go_down()
            await two.go_down()
            await patiently(direct.put, keys[0], b"1")
            await patiently(direct.delete, KeyRange.of_key(keys[1]))
            await patiently(direct.delete, KeyRange.of_key(keys[2]))
            await patiently(direct.put, keys[2], b"again")
            compacted = (await patiently(direct.delete, KeyRange.of_key(keys[3]))).revision
            earlier = await oracle.read_history(direct, KeyRange.of_prefix(prefix))
            await patiently(direct.put, keys[4], b"4")
            await patiently(direct.delete, KeyRange.of_key(keys[5]))
            await compact(direct, compacted)
            await two.come_up()
            skipped = [Skipped(max(made), compacted)]
            # Of a range without keys there is nothing to deliver: it comes when it comes.
            await eventually(
                lambda: sum((s := reflector.statistics()).relists.values()) >= s.ranges
            )
            await judge_delivery(sink, direct, prefix, earlier=earlier, skipped=skipped)
            statistics = reflector.statistics()
    deletes = {change.key for change in sink.changes if change.synthesised}
    assert deletes == {keys[1], keys[2], keys[3]}
    assert statistics.relists == {"compacted": statistics.ranges}


async def test_several_mark_and_one_edits_while_leaders_change(
    way: Way, direct: Etcd, prefix: bytes
) -> None:
    """Three processors, each on a member of its own: one mark each, and every edit is kept."""
    actions = [make_action(prefix, f"rs{n:03}", "a1", like=n) for n in range(60)]
    edits = 2

    async def edit(key: bytes) -> None:
        store = Store(direct)
        for n in range(edits):

            async def is_applied(name: str = f"edit-{n}") -> bool:
                kv = await store.get(key)
                assert kv is not None
                value = with_annotation(kv.value, name, "kept")
                return kv.value == value or (await store.compare_and_put(kv, value)).applied

            while not await patiently(is_applied):
                continue

    with trio.fail_after(120):
        for action in actions:
            await patiently(direct.put, action.key, action.ended)
        ends = way.cluster.endpoints
        async with (
            way.open(*ends) as one,
            way.open(*ends[1:], ends[0]) as two,
            way.open(*ends[2:], *ends[:2]) as three,
        ):
            run_services = [RecordingRunService(direct) for _ in range(3)]
            async with (
                processing(one, prefix, run_services[0]) as first,
                processing(two, prefix, run_services[1]) as second,
                processing(three, prefix, run_services[2]) as third,
            ):
                processors = [first, second, third]
                async with trio.open_nursery() as nursery:
                    for action in actions:
                        nursery.start_soon(edit, action.key)
                    for _ in range(2):
                        await trio.to_thread.run_sync(way.cluster.move_leader)
                    await kill_in_use(way, two)
                history = await judge_marks(processors, run_services, direct, prefix)
    for entry in oracle.final_states(history).values():
        annotations = json.decode(entry.value).metadata.annotations
        assert [annotations.get(f"edit-{n}") for n in range(edits)] == ["kept"] * edits


async def test_the_run_service_is_away_while_members_go(
    way: Way, direct: Etcd, prefix: bytes
) -> None:
    """It refuses all; a member is killed, the leader moves; then it accepts, and all is marked."""
    with trio.fail_after(120):
        async with way.open() as etcd:
            run_service, load = RecordingRunService(direct), Load(direct)
            run_service.refuse = lambda _: True
            async with (
                processing(etcd, prefix, run_service) as processor,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(load.play, [make_run(prefix, run, 3) for run in RUNS])
                await load.reached(20)
                await kill_in_use(way, etcd)
                await trio.to_thread.run_sync(way.cluster.move_leader)
                await load.reached(10_000)
                keys = KeyRange.of_prefix(prefix)
                history = await oracle.read_history(direct, keys)
                assert run_service.told == []
                assert oracle.mark_problems(history, [], whole=False) == []
                run_service.refuse = lambda _: False
                history = await judge_marks([processor], [run_service], direct, prefix)
                final = oracle.final_states(history).values()
                left = sum(not entry.is_delete for entry in final)
                # One whose answer was lost with a leader is found to be there already.
                marks = processor.statistics().marks
                assert marks["marked"] + marks.get("already", 0) == left > 0


@pytest.mark.parametrize("when", ["before", "between"])
async def test_a_crash_around_the_acceptance(
    way: Way, direct: Etcd, prefix: bytes, when: str
) -> None:
    """Our process is killed, then the member it used: the next start tells and marks."""
    actions = make_run(prefix, "rx1", 3)
    for action in actions:
        await patiently(direct.put, action.key, action.ended)
    with trio.fail_after(120):
        assert await run_processor(way, prefix, when) == -signal.SIGKILL
        found = await patiently(direct.range, KeyRange.of_prefix(prefix))
        assert not all(json.decode(kv.value).is_recorded for kv in found.kvs)
        first = way.cluster.members[0]
        first.kill()
        assert await run_processor(way, prefix, "never") == 0
        await trio.to_thread.run_sync(way.cluster.start_member, first)
        history = await oracle.read_history(direct, KeyRange.of_prefix(prefix))
    marks = {action.key: 0 for action in actions}
    for entry in history:
        marks[entry.key] += json.decode(entry.value).is_recorded
    assert set(marks.values()) == {1}


async def run_processor(way: Way, prefix: bytes, when: str) -> int:
    """Run one in a process of its own, told by its environment how to connect."""
    tls = way.cluster.tls
    assert tls is not None
    done = await trio.run_process(
        [
            *(sys.executable, "-m", "tests.support.crashing"),
            *(",".join(way.cluster.endpoints), prefix.decode(), when),
        ],
        cwd=_ROOT,
        env={
            "PATH": os.environ["PATH"],
            "ETCDCTL_CACERT": str(tls.ca),
            "ETCDCTL_CERT": str(tls.cert),
            "ETCDCTL_KEY": str(tls.key),
            "ETCDCTL_USER": WORKER.name,
            "ETCDCTL_PASSWORD": str(WORKER.password),
            "ETCD_ACTIONS_TRANSPORT": way.transport,
        },
        check=False,
        capture_stdout=True,
    )
    return done.returncode


async def test_no_more_files_may_be_opened(tmp_path: Path, transport: TransportName) -> None:
    """The connection is gone and no other can be made: Unavailable, until that is over."""
    single = EtcdCluster(tmp_path / "etcd")
    try:
        single.start()
        with trio.fail_after(90):
            process = await trio.lowlevel.open_process(
                [sys.executable, "-m", "tests.support.starving", *single.endpoints, transport],
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                said = b""
                while not said.endswith(b"\n"):
                    said += await process.stdout.receive_some()
                single.members[0].kill()
                single.start()
                await process.stdin.send_all(b"\n")
                async for more in process.stdout:
                    said += more
                assert await process.wait() == 0
            finally:
                process.kill()
                await process.wait()
        names = said.decode().split()
        assert (names[0], names[-1]) == ("ready", "recovered")
        assert set(names[1:-1]) <= {"Unavailable", "OutcomeUnknown"}
        assert "Unavailable" in names
    finally:
        single.stop()
