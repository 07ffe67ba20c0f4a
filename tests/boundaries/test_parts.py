"""What single parts do with what nobody foresaw, step by step."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import pytest
import trio
import trio.testing

from etcd_actions import open_etcd
from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions.codecs import codec_named, json
from etcd_actions.errors import DecodeError, EtcdError, InvalidRequest, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Delete, Etcd, KeyRange, KeyValue, Put, Txn, TxnResult, WatchCreate
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.follow.subscriptions import Subscriptions
from etcd_actions.follow.workqueue import WorkQueue, WorkQueueSettings
from etcd_actions.http2 import Code
from etcd_actions.model import build_action_update
from etcd_actions.run_service import status_codes
from etcd_actions.run_service.status_codes import Meaning
from etcd_actions.watch import Change, ChangeKind, Reflector
from tests.boundaries.test_boundaries import playing
from tests.data.captured import PUTS
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.load import make_run
from tests.support.recording import RecordingSink
from tests.support.waiting import eventually

pytestmark = pytest.mark.memory

_SOON = Backoff(0.01, 0.05)

# --- the reflector --------------------------------------------------------------------------


class Failing(RecordingSink):
    """Takes some changes of a batch, and fails at the next."""

    def __init__(self) -> None:
        super().__init__()
        self.takes: int | None = None

    def dispatch(self, changes: Sequence[Change]) -> None:
        takes, self.takes = self.takes, None
        super().dispatch(list(islice(changes, takes)))
        if takes is not None:
            raise RuntimeError("the sink has no more room")


@pytest.mark.parametrize("takes", first_everyday([0, 1, 2, 3, 4, 5], 2))
async def test_what_a_failing_sink_did_not_take_is_given_out_again(
    etcd: Etcd, prefix: bytes, takes: int
) -> None:
    """Deletes too, also of keys that were made again, or made and deleted, in the same batch."""
    gone, again, new, brief, kept = (prefix + name for name in (b"a", b"b", b"c", b"d", b"e"))
    for key in (gone, again, kept):
        await etcd.put(key, b"before")
    sink, containment = Failing(), Containment()
    reflector = Reflector(etcd, KeyRange.of_prefix(prefix), sink, containment=containment)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(reflector.run)
            sink.takes = takes
            # One transaction cannot put and delete a key: this is as near as it gets.
            deletes = [_deleted(gone), _deleted(again)]
            await etcd.txn(Txn([], [*deletes, Put(brief, b"brief"), Put(new, b"new")]))
            await etcd.txn(Txn([], [Put(again, b"again"), _deleted(brief), Put(kept, b"after")]))
            await eventually(lambda: _last(sink, kept) == b"after" and sink.takes is None)
            await eventually(lambda: reflector.statistics().relists.get("failed") == 1)
            await eventually(lambda: reflector.statistics().streaming)
            await etcd.put(prefix + b"z", b"last")
            await eventually(lambda: _last(sink, prefix + b"z") == b"last")
            nursery.cancel_scope.cancel()
    assert _last(sink, gone) is None
    assert _last(sink, new) == b"new"
    assert _last(sink, again) == b"again"
    assert _last(sink, brief) is None
    ends = [change.is_delete for change in sink.changes if change.key == again]
    assert True in ends, "the end of the first incarnation was not told"
    for key in (gone, again, new, brief, kept):
        revisions = [change.mod_revision for change in sink.changes if change.key == key]
        assert revisions == sorted(revisions)
    assert containment.failures == {"watch": 1}


def _deleted(key: bytes) -> Delete:
    return Delete(KeyRange.of_key(key))


def _last(sink: RecordingSink, key: bytes) -> bytes | None:
    change = sink.last().get(key)
    return None if change is None or change.is_delete else change.value


# --- the group commit -----------------------------------------------------------------------


class Odd:
    """Fails unexpectedly at a group that a key is in, after it was done."""

    def __init__(self, etcd: Etcd, key: bytes) -> None:
        self._etcd = etcd
        self._key = key
        self.groups: list[int] = []
        self.gate = trio.Event()

    async def txn(self, txn: Txn) -> TxnResult:
        await self.gate.wait()
        members = [each for each in txn.success if isinstance(each, Txn)] or [txn]
        self.groups.append(len(members))
        if any(put.key == self._key for each in members for put in _puts(each)):
            raise BaseExceptionGroup("odd", [RuntimeError("odd"), SystemExit(1)])
        return await self._etcd.txn(txn)


def _puts(txn: Txn) -> list[Put]:
    return [each for each in txn.success if isinstance(each, Put)]


async def test_a_group_that_fails_unexpectedly_fails_its_members_and_then_one_alone(
    etcd: Etcd, prefix: bytes
) -> None:
    """The committer lives; tried again each goes alone, so only the culprit fails."""
    odd, containment = Odd(etcd, prefix + b"k3"), Containment()
    outcomes: dict[int, list[Exception | None]] = {number: [] for number in range(8)}

    async def write(number: int) -> None:
        for _ in range(2):
            try:
                await commit.txn(Txn([], [Put(prefix + b"k%d" % number, b"v")]))
            except EtcdError as error:
                outcomes[number].append(error)
            except BaseExceptionGroup:
                outcomes[number].append(RuntimeError())
            else:
                outcomes[number].append(None)

    with trio.fail_after(30):
        async with (
            open_group_commit(cast(Etcd, odd), containment) as commit,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(commit.txn, Txn([], [Put(prefix + b"filler0", b"")]))
            nursery.start_soon(commit.txn, Txn([], [Put(prefix + b"filler1", b"")]))
            await trio.testing.wait_all_tasks_blocked()
            for number in range(8):
                nursery.start_soon(write, number)
            await trio.testing.wait_all_tasks_blocked()
            odd.gate.set()
    assert all(isinstance(outcomes[number][0], OutcomeUnknown) for number in range(8))
    assert [number for number in range(8) if outcomes[number][1] is not None] == [3]
    assert containment.failures == {"transaction_group": 1}


async def test_an_answer_for_too_few_is_of_unknown_outcome(etcd: Etcd, prefix: bytes) -> None:
    class Short:
        def __init__(self) -> None:
            self.gate = trio.Event()

        async def txn(self, txn: Txn) -> TxnResult:
            await self.gate.wait()
            answer = await etcd.txn(txn)
            return TxnResult(answer.succeeded, answer.responses[:1], answer.revision)

    short = Short()
    errors: list[Exception] = []

    async def write(number: int) -> None:
        try:
            await commit.txn(Txn([], [Put(prefix + b"k%d" % number, b"v")]))
        except OutcomeUnknown as error:
            errors.append(error)

    with trio.fail_after(30):
        async with (
            open_group_commit(cast(Etcd, short)) as commit,
            trio.open_nursery() as nursery,
        ):
            for number in range(6):
                nursery.start_soon(write, number)
                await trio.testing.wait_all_tasks_blocked()
            short.gate.set()
    assert len(errors) == 4


# --- the transports -------------------------------------------------------------------------


async def test_a_request_that_cannot_be_written_is_refused(
    shared_etcd: EtcdServer, prefix: bytes, transport: TransportName
) -> None:
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        with pytest.raises(InvalidRequest, match="the request cannot be written"):
            await etcd.put(cast(bytes, object()), b"")
        await etcd.put(prefix, b"")


async def test_without_threads_a_stream_fails_and_the_next_one_does_not(
    shared_etcd: EtcdServer, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no more threads: an error of the package, not the end of the process.

    Of the gateway; gRPC needs none.
    """
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "etcd-watch":
            raise RuntimeError("can't start new thread")
        start(thread)

    async def watch() -> None:
        async with etcd.watch() as stream:
            stream.create(WatchCreate(1, KeyRange.of_prefix(prefix), 0))
            await stream.receive()

    with trio.fail_after(30):
        async with open_etcd(shared_etcd.endpoint, transport="gateway") as etcd:
            with monkeypatch.context() as patched:
                patched.setattr(threading.Thread, "start", refuse)
                with pytest.raises(Unavailable, match="no thread can be started"):
                    await watch()
            await watch()


# --- the router -----------------------------------------------------------------------------


async def test_a_worker_outlives_all_that_handlers_raise() -> None:
    """One worker, and each kind of exception: the key fails, others are handled, it heals."""
    errors: list[BaseException] = [
        RuntimeError(),
        SystemExit(1),
        MemoryError(),
        GeneratorError("its text cannot be made"),
        trio.EndOfChannel(),
        BaseExceptionGroup("g", [BaseExceptionGroup("h", [SystemExit(2)])]),
    ]
    handled: list[bytes] = []

    async def handle(change: Change) -> None:
        if change.key == b"bad" and errors:
            raise errors.pop()
        handled.append(change.key)

    async def reread(change: Change) -> Change | None:
        return change

    containment = Containment()
    router = WorkQueue(handle, reread, WorkQueueSettings(backoff=_SOON), containment=containment)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(router.worker)
            nursery.start_soon(router.retry_failed)
            router.dispatch([_put(b"bad"), _put(b"good")])
            await eventually(lambda: handled == [b"good", b"bad"])
            nursery.cancel_scope.cancel()
    assert containment.failures == {"change": 6}
    assert router.statistics().failing == ()


class GeneratorError(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RecursionError


def _put(key: bytes) -> Change:
    return Change(ChangeKind.ADDED, KeyValue(key, b"v", 1, 1, 1))


# --- values ---------------------------------------------------------------------------------


async def test_what_only_the_run_service_cannot_be_told_is_set_aside(
    etcd: Etcd, prefix: bytes
) -> None:
    """Good enough for the handlers: not tried for ever, but listed, and healed."""
    bad, good = make_run(prefix, "r1", 2)[:2]
    odd = bad.ended.replace(b'"metadata":{', b'"metadata":{"generation":"many",', 1)
    with pytest.raises(DecodeError):
        json.decode(odd)
    assert json.summarize(odd).is_terminal
    async with playing(etcd, prefix) as scene:
        await scene.client.stop_watching()
        scene.updates.clear()
        await etcd.put(bad.key, odd)
        await etcd.put(good.key, good.ended)
        await scene.client.start_watching()
        await eventually(lambda: any(each.key == good.key for each in scene.run_service.told))
        await eventually(lambda: set(scene.client.statistics().undecodable) == {bad.key})
        outbox = scene.client.statistics().outbox
        assert outbox is not None
        assert outbox.failing == ()
        await etcd.put(bad.key, bad.ended)
        await eventually(lambda: any(each.key == bad.key for each in scene.run_service.told))
        assert scene.client.statistics().undecodable == {}


@pytest.mark.parametrize("form", ["json", "msgpack", "protobuf"])
@pytest.mark.parametrize("function", ["decode", "summarize", "decode_tree", "release"])
def test_a_codec_raises_nothing_but_a_decode_error(
    form: str, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the libraries below it do."""
    codec: Any = codec_named(form)
    value = codec.encode_tree(json.decode_tree(PUTS[0].value))
    arguments = ("l", "t", "f") if function == "release" else ()

    def broken(*_: object, **__: object) -> object:
        raise error

    inner = ("_decode_action", "_decode_facts", "_decode_outline", "_decode_tree", "_parse")
    for error in (OverflowError("o"), MemoryError(), RecursionError(), AttributeError("a")):
        with monkeypatch.context() as patched:
            for name in inner:
                if hasattr(codec, name):
                    patched.setattr(codec, name, broken)
            for name in ("from_json", "check"):
                patched.setattr(codec.trees, name, broken)
            refused = None
            try:
                getattr(codec, function)(value, *arguments, key=b"k", revision=7)
            except DecodeError as refusal:
                refused = refusal
            if refused is not None:
                assert (refused.key, refused.revision) == (b"k", 7)
                assert refused.doubtful == isinstance(error, MemoryError)


def test_a_reason_that_quotes_a_value_is_cut() -> None:
    value = PUTS[0].value.replace(b"flyte.org/v1", b"z" * 1_000_000)
    with pytest.raises(DecodeError) as raised:
        json.decode(value)
    assert len(str(raised.value)) < 1_100
    error = status_codes.error(Meaning.PERMANENT, Code.INVALID_ARGUMENT, "x" * 1_000_000)
    assert len(str(error)) < 2_100


# --- subscriptions --------------------------------------------------------------------------


async def test_a_subscription_that_fails_ends_alone(etcd: Etcd, prefix: bytes) -> None:
    containment = Containment()
    subscriptions = Subscriptions(containment)
    action = json.decode(PUTS[0].value)
    update = build_action_update(action, key=PUTS[0].key, revision=7)
    one, other = subscriptions.subscribe(None), subscriptions.subscribe(None)

    def fail(_: object) -> None:
        raise BaseExceptionGroup("odd", [SystemExit(1), MemoryError()])

    one.deliver = fail  # type: ignore[assignment, method-assign]
    subscriptions.notify(update)
    assert (await other.receive()).revision == 7
    with pytest.raises(Unavailable, match="subscribe again"):
        await one.receive()
    assert len(subscriptions) == 1
    assert containment.failures == {"subscription": 1}
    subscriptions.notify(update)
    assert (await other.receive()).revision == 7


# --- containment ----------------------------------------------------------------------------


async def test_what_was_caught_is_contained_and_what_passes_is_raised() -> None:
    containment = Containment()
    with trio.CancelScope() as scope:
        scope.cancel("the test wants it")
        try:
            await trio.sleep_forever()
        except BaseException as error:
            containment.caught("change", "k", error)
    assert scope.cancelled_caught
    failure = RuntimeError()
    assert containment.caught("change", "k", failure, parks=True) is failure
    containment.caught("change", "l", failure, parks=True)
    containment.forget_all("change", ["k", "m"])
    assert [each.identity for each in containment.parked] == ["l"]
