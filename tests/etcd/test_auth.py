"""Users, passwords, tokens and permissions, on an etcd that wants them."""

from __future__ import annotations

import base64
import itertools
import json
import os
import re
import signal
import subprocess
import traceback
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import structlog.testing
import trio
import trio.testing
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions import open_etcd
from etcd_actions._internal.backoff import Backoff
from etcd_actions.errors import (
    EtcdActionsError,
    InvalidRequest,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd import Etcd, EtcdClient, TransportName, User, rpc
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Get,
    KeyRange,
    Put,
    Txn,
    WatchCreate,
    WatchStream,
)
from etcd_actions.etcd.auth import Authenticator
from etcd_actions.etcd.gateway import errors as gateway_errors
from etcd_actions.etcd.gateway.wire import Refusal
from etcd_actions.etcd.grpc import errors as grpc_errors
from etcd_actions.etcd.permissions import needed_for
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.etcd.rpc import AuthenticateRequest
from etcd_actions.http2 import CallFailed, Code
from etcd_actions.model import DEFAULT_KEY_PREFIX, Keyspace
from etcd_actions.testing.etcd_process import etcdctl_for, packaged_binary, sound_binary_on_path
from etcd_actions.watch import Reflector
from tests.cli.command import ROOT as ROOT_DIRECTORY
from tests.cli.command import finish, running
from tests.server.front.run_calls import RunsAsker, create, run_id
from tests.support.cluster import ROOT, WORKER, EtcdCluster, signed_tokens
from tests.support.everyday import first_everyday
from tests.support.load import make_run
from tests.support.proxy import open_proxy
from tests.support.recording import RecordingSink, eventually, until_stored
from tests.support.scene import REFLECTOR, UNHURRIED, all_marked, judge_delivery, reflecting
from tests.support.waiting import eventually_holds

_SECRETS = ("root-pw-5f1c", "worker-pw-9b27", "another-pw-c0de", "third-pw-77aa")
ANOTHER = replace(WORKER, password=_SECRETS[2])
CALLS = 40
_PATIENCE = 60


def tells_no_secret(error: BaseException) -> None:
    """Neither the error nor its traceback, with all variables, has a password in it."""
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    text = str(error) + repr(error) + "".join(told.format())
    assert not [secret for secret in _SECRETS if secret in text]


# The user's side, without an etcd.


class Asked:
    """Answers the question for a token as it was told to, and counts."""

    def __init__(self, answer: str | EtcdActionsError) -> None:
        self.answer = answer
        self.requests: list[AuthenticateRequest] = []
        self.times: list[float] = []

    async def __call__(self, request: AuthenticateRequest, within: float) -> str:
        self.requests.append(request)
        self.times.append(trio.current_time())
        await trio.sleep(0.1)  # How long etcd takes, on a clock that jumps.
        if isinstance(self.answer, EtcdActionsError):
            raise self.answer
        return self.answer


async def test_one_asks_for_all(autojump_clock: trio.testing.MockClock) -> None:
    """Any number of calls at once: one question; again one when the token was refused."""
    authenticator, asked = Authenticator(WORKER), Asked("t1")
    for number in (1, 2):
        tokens: list[str] = []

        async def call(tokens: list[str] = tokens) -> None:
            tokens.append(await authenticator.token(asked, 5))

        async with trio.open_nursery() as nursery:
            for _ in range(CALLS):
                nursery.start_soon(call)
        assert tokens == [f"t{number}"] * CALLS
        assert len(asked.requests) == number
        asked.answer = f"t{number + 1}"
        # All of them learn that it was refused; a newer one is not dropped.
        for _ in range(CALLS):
            authenticator.reject(f"t{number}")


async def test_a_refused_password_is_offered_ever_more_rarely(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Called twice a second for ten minutes: the delays double up to the longest."""
    asked = Asked(InvalidRequest("authentication failed, invalid user ID or password"))
    authenticator = Authenticator(WORKER, backoff=Backoff(1, 60))
    for _ in range(1200):
        with pytest.raises(
            Unauthenticated, match=r"invalid user ID or password.*'worker'"
        ) as caught:
            await authenticator.token(asked, 5)
        tells_no_secret(caught.value)
        await trio.sleep(0.5)  # The pace of the callers, on a clock that jumps.
    gaps = [after - before for before, after in itertools.pairwise(asked.times)]
    for number, gap in enumerate(gaps):
        assert min(60, 2.0**number) * 0.5 <= gap <= min(60, 2.0**number) + 0.7
    assert len(gaps) > 10


async def test_another_password_is_offered_at_once(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """Who mends the file does not wait for the delay."""
    file = tmp_path / "password"
    file.write_text("wrong\n")
    asked = Asked(InvalidRequest("authentication failed"))
    authenticator = Authenticator(User(name="worker", password_file=file))
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await authenticator.token(asked, 5)
    file.write_text("right\n")
    asked.answer = "t"
    assert await authenticator.token(asked, 5) == "t"
    assert [request.password for request in asked.requests] == ["wrong", "right"]


async def test_a_password_file_may_be_away_for_a_while(
    autojump_clock: trio.testing.MockClock, tmp_path: Path
) -> None:
    """While it is, etcd cannot be asked; that is no refusal, and the message names the file."""
    file = tmp_path / "password"
    asked = Asked("t")
    authenticator = Authenticator(User(name="worker", password_file=file))
    with pytest.raises(Unavailable, match=str(file)):
        await authenticator.token(asked, 5)
    file.write_bytes(b"\xff")
    with pytest.raises(Unavailable, match="not UTF-8"):
        await authenticator.token(asked, 5)
    file.write_bytes(b"with spaces \r\n")
    assert await authenticator.token(asked, 5) == "t"
    assert asked.requests == [AuthenticateRequest("worker", "with spaces ")]


async def test_who_waits_for_another_waits_no_longer_than_asked(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The one that asks is cancelled, or gets no answer: the others go on in time."""
    authenticator = Authenticator(WORKER)

    async def never(request: AuthenticateRequest, within: float) -> str:
        await trio.sleep(within)
        raise Unavailable("no answer")

    async def call() -> None:
        began = trio.current_time()
        with pytest.raises(Unavailable):
            await authenticator.token(never, 5)
        assert trio.current_time() - began <= 5.1

    async with trio.open_nursery() as nursery:
        for _ in range(CALLS):
            nursery.start_soon(call)
    with trio.move_on_after(1) as scope:
        await authenticator.token(never, 5)
    assert scope.cancelled_caught
    assert await authenticator.token(Asked("t"), 5) == "t"


def test_no_text_of_a_user_has_the_password() -> None:
    """Whatever prints settings prints no secret."""
    request = AuthenticateRequest(WORKER.name, _SECRETS[1])
    for text in (repr(WORKER), str(WORKER), repr(request), str(request), f"{request}"):
        assert "worker" in text
        assert _SECRETS[1] not in text


@pytest.mark.parametrize(
    "text", ["etcdserver: revision of auth store is old", "auth: revision in header is old"]
)
def test_a_token_from_before_a_change_of_users_is_known_by_its_text(text: str) -> None:
    """As etcd says it, and as 3.5.1 does: the call was refused, and wants a new token."""
    call = CallFailed(Code.UNKNOWN, text, answered=True)
    failed = grpc_errors.from_failure(call, what="KV/Put", writes=True)
    assert type(failed) is Unauthenticated
    asked = gateway_errors.Asked("KV/Put", writes=True)
    refused = gateway_errors.from_refusal(Refusal(2, text), asked)
    assert type(refused.error) is Unauthenticated


# On an etcd.


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Wants users; its tokens end after three seconds unused."""
    flags = ["--auth-token=simple", "--auth-token-ttl=3"]
    cluster = EtcdCluster(tmp_path_factory.mktemp("auth"), flags=flags)
    try:
        cluster.start()
        cluster.enable_auth()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(params=first_everyday(["grpc", "gateway"]))
def transport(request: pytest.FixtureRequest) -> TransportName:
    return cast(TransportName, request.param)


@pytest.fixture(params=first_everyday(["simple", "jwt"]))
def own(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[EtcdCluster]:
    """The test's own, with users that are not wanted yet, and tokens of each kind."""
    cluster = EtcdCluster(
        tmp_path / "etcd",
        flags=[signed_tokens(tmp_path) if request.param == "jwt" else "--auth-token=simple"],
    )
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def guarded(own: EtcdCluster) -> EtcdCluster:
    """The test's own, which wants users."""
    own.enable_auth()
    return own


@asynccontextmanager
async def connected(
    cluster: EtcdCluster, transport: TransportName, user: User | None = WORKER
) -> AsyncIterator[Etcd]:
    """With a user; by default the one that may do everything with keys."""
    async with open_etcd(cluster.endpoints, transport=transport, user=user) as etcd:
        yield etcd


async def put_at_once(etcd: Etcd, prefix: bytes, count: int = CALLS) -> None:
    async with trio.open_nursery() as nursery:
        for n in range(count):
            nursery.start_soon(etcd.put, prefix + b"%d" % n, b"v")


def most_questions(elapsed: float) -> int:
    """How often a refused password may be offered in this time."""
    questions, delays = 1, 0.0
    # Half a second, a second, two seconds ... at least.
    while (delays := delays + 0.5 * 2 ** (questions - 1)) <= elapsed:
        questions += 1
    return questions


async def first_event(stream: WatchStream, keys: KeyRange, revision: int) -> None:
    stream.create(WatchCreate(1, keys, revision))
    while not any(response.events for response in await stream.receive()):
        continue


async def ask(cluster: EtcdCluster, *arguments: str) -> None:
    await trio.to_thread.run_sync(cluster.etcdctl, *arguments)


def token_of(etcd: Etcd) -> str:
    """The token that it uses now."""
    assert isinstance(etcd, EtcdClient)
    assert etcd._authenticator is not None
    assert etcd._authenticator._token
    return etcd._authenticator._token


async def until_expired(cluster: EtcdCluster, *tokens: str) -> None:
    """Wait until etcd has deleted them for their age."""
    (member,) = cluster.members
    log = member.directory / "etcd.log"

    def all_deleted() -> bool:
        lines = [line for line in log.read_text().splitlines() if "deleted a simple token" in line]
        return all(any(token in line for line in lines) for token in tokens)

    await eventually(all_deleted)


async def test_one_token_for_all_calls(
    shared: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Many calls at once and a stream: one question."""
    before = shared.authentications()
    with trio.fail_after(_PATIENCE):
        async with connected(shared, transport) as etcd:
            await put_at_once(etcd, prefix)
            async with etcd.watch() as stream:
                await first_event(stream, KeyRange.of_prefix(prefix), 1)
    assert shared.authentications() - before == 1


async def test_who_names_nobody_is_refused(
    shared: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """No user, to an etcd that wants one."""
    async with connected(shared, transport, user=None) as etcd:
        with pytest.raises(Unauthenticated, match="user name is empty"):
            await etcd.put(prefix, b"")
        sink = RecordingSink()
        reflector = Reflector(etcd, KeyRange.of_prefix(prefix), sink)
        with pytest.raises(Unauthenticated):
            await reflector.run()


@pytest.mark.parametrize(
    "user", [ANOTHER, User(name="nobody", password=_SECRETS[3])], ids=["password", "user"]
)
async def test_a_wrong_password_is_asked_once(
    shared: EtcdCluster, prefix: bytes, transport: TransportName, user: User
) -> None:
    """Many calls at once: one question, each refused, and nobody learns the password."""
    began, before = trio.current_time(), shared.authentications()
    errors: list[Unauthenticated] = []
    with structlog.testing.capture_logs() as logs, trio.fail_after(_PATIENCE):
        async with connected(shared, transport, user=user) as etcd:

            async def call() -> None:
                with pytest.raises(Unauthenticated, match=f"{user.name!r}") as caught:
                    await etcd.put(prefix, b"")
                errors.append(caught.value)

            async with trio.open_nursery() as nursery:
                for _ in range(CALLS):
                    nursery.start_soon(call)
            with pytest.raises(Unauthenticated, match=f"{user.name!r}") as caught:
                await Reflector(etcd, KeyRange.of_prefix(prefix), RecordingSink()).run()
            errors.append(caught.value)
            assert not [secret for secret in _SECRETS if secret in repr(vars(etcd))]
    asked, elapsed = shared.authentications() - before, trio.current_time() - began
    assert 1 <= asked <= most_questions(elapsed)
    for error in errors:
        tells_no_secret(error)
    assert not [secret for secret in _SECRETS if secret in repr(logs)]


@pytest.mark.slow
async def test_an_expired_token_is_renewed_once(
    shared: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Unused for too long: the calls succeed, with one question for all of them."""
    with trio.fail_after(_PATIENCE):
        async with connected(shared, transport) as etcd:
            await etcd.put(prefix, b"")
            await until_expired(shared, token_of(etcd))
            before = shared.authentications()
            await put_at_once(etcd, prefix)
            assert shared.authentications() - before == 1


@pytest.mark.slow
async def test_a_stream_outlives_its_token(
    shared: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """A quiet watch with an expired token goes on; cut off, it comes back with another."""
    (member,) = shared.members
    sink = RecordingSink()
    with trio.fail_after(_PATIENCE):
        async with (
            open_proxy(member.port) as proxy,
            open_etcd(proxy.endpoint, transport=transport, user=WORKER) as etcd,
            connected(shared, transport) as direct,
            # Its questions to a quiet etcd would keep the token.
            reflecting(etcd, prefix, sink, settings=UNHURRIED) as reflector,
        ):
            await direct.put(prefix + b"1", b"")
            await until_expired(shared, token_of(etcd), token_of(direct))
            await direct.put(prefix + b"2", b"")
            await sink.bell.until(lambda: len(sink.changes) == 2)
            proxy.cut()
            await direct.put(prefix + b"3", b"")
            await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}


class Revoking:
    """An etcd whose tokens end just before each of the first streams is opened."""

    def __init__(self, etcd: Etcd, cluster: EtcdCluster, times: int) -> None:
        self._etcd = etcd
        self._cluster = cluster
        self.left = times

    def __getattr__(self, name: str) -> object:
        return getattr(self._etcd, name)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[WatchStream]:
        if self.left:
            self.left -= 1
            # Of either kind of token, all end with this.
            await trio.to_thread.run_sync(self._cluster.set_password, WORKER)
        async with self._etcd.watch() as stream:
            yield stream


async def test_a_stream_with_a_bad_token(
    guarded: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """etcd opens the stream and refuses the watch: the next stream has a new token."""
    keys = KeyRange.of_prefix(prefix)
    with trio.fail_after(_PATIENCE):
        async with connected(guarded, transport) as etcd:
            await etcd.put(prefix, b"")
            await trio.to_thread.run_sync(guarded.set_password, WORKER)
            refusal: type[EtcdActionsError] | None = None
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, keys, 1))
                while refusal is None:
                    try:
                        responses = await stream.receive()
                    except (Unauthenticated, PermissionDenied) as error:
                        refusal = type(error)
                        break
                    assert not any(response.events for response in responses)
                    for response in responses:
                        if response.canceled:
                            refusal = error_kind(response.cancel_reason)
            # Of a token from before a change of permissions etcd may say either.
            assert refusal in (Unauthenticated, PermissionDenied)
            if refusal is PermissionDenied:
                await etcd.range(keys)
            async with etcd.watch() as stream:
                await first_event(stream, keys, 1)


async def test_a_reflector_whose_streams_get_bad_tokens(
    guarded: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Three streams in a row are opened with a token that has ended: nothing is lost."""
    sink = RecordingSink()
    with trio.fail_after(_PATIENCE):
        async with (
            connected(guarded, transport) as direct,
            connected(guarded, transport) as etcd,
        ):
            await direct.put(prefix + b"1", b"")
            revoking = Revoking(etcd, guarded, 3)
            async with reflecting(revoking, prefix, sink) as reflector:  # type: ignore[arg-type]
                await direct.put(prefix + b"2", b"")
                await judge_delivery(sink, direct, prefix)
                assert revoking.left == 0
                assert sum(reflector.statistics().reconnects.values()) >= 3
                assert reflector.statistics().reconnects.keys() <= {
                    "Unauthenticated",
                    "PermissionDenied",
                }


async def test_other_peoples_permissions_change(
    guarded: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Signed tokens end with any change of users: one question, and all calls succeed.

    Others stay as they are.
    """
    questions = int("jwt" in guarded.flags[0])
    with trio.fail_after(_PATIENCE):
        async with connected(guarded, transport) as etcd:
            await put_at_once(etcd, prefix)
            for n in range(2):
                await ask(guarded, "user", "add", f"somebody{n}:x")
                before = guarded.authentications()
                await put_at_once(etcd, prefix)
                assert guarded.authentications() - before == questions


async def test_authentication_is_switched_on_and_off(
    own: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """A client with a user works without, and goes on when the question comes up, and again."""
    sink = RecordingSink()
    with trio.fail_after(_PATIENCE):
        async with connected(own, transport) as etcd, connected(own, transport) as direct:
            await put_at_once(direct, prefix)
            async with reflecting(etcd, prefix, sink) as reflector:
                own.enable_auth()
                await put_at_once(direct, prefix)
                own.disable_auth()
                await put_at_once(direct, prefix)
                await ask(own, "auth", "enable")
                own.root = ROOT
                await put_at_once(direct, prefix)
                await judge_delivery(sink, direct, prefix)
                assert reflector.statistics().relists == {}


async def test_an_etcd_without_users_is_asked_once(
    own: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """That authentication is off is remembered as well."""
    async with connected(own, transport) as etcd:
        await put_at_once(etcd, prefix)
        await put_at_once(etcd, prefix)
        assert own.authentications() == 1


async def test_the_password_changes(
    guarded: EtcdCluster, prefix: bytes, transport: TransportName, tmp_path: Path
) -> None:
    """First in etcd, then in the file: refused in between, offered rarely, then all goes on."""
    file = tmp_path / "password"
    file.write_text(f"{WORKER.password}\n")
    user = User(name=WORKER.name, password_file=file)
    sink = RecordingSink()
    with structlog.testing.capture_logs() as logs, trio.fail_after(_PATIENCE):
        async with (
            connected(guarded, transport, user=ROOT) as direct,
            connected(guarded, transport, user=user) as etcd,
            reflecting(etcd, prefix, sink, settings=BRIEF) as reflector,
        ):
            await etcd.put(prefix + b"1", b"")
            await trio.to_thread.run_sync(guarded.set_password, ANOTHER)
            began, before = trio.current_time(), guarded.authentications()
            await eventually(
                lambda: reflector.statistics().reconnects.get("Unauthenticated", 0) >= 6
            )
            with pytest.raises(Unauthenticated):
                await etcd.put(prefix + b"2", b"")
            asked, elapsed = guarded.authentications() - before, trio.current_time() - began
            assert asked <= most_questions(elapsed)
            await direct.put(prefix + b"3", b"")
            file.write_text(f"{ANOTHER.password}\n")
            await etcd.put(prefix + b"4", b"")
            await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}
    lost = [line["error"] for line in logs if line["event"] == "watch_lost"]
    assert any("'worker'" in error for error in lost)
    assert not [secret for secret in _SECRETS if secret in repr(logs)]


BRIEF = replace(REFLECTOR, stream_life=0.2)


async def test_the_user_is_deleted(
    guarded: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Refused, and told so; made again, all goes on."""
    sink = RecordingSink()
    with trio.fail_after(_PATIENCE):
        async with (
            connected(guarded, transport, user=ROOT) as direct,
            connected(guarded, transport) as etcd,
            reflecting(etcd, prefix, sink, settings=BRIEF) as reflector,
        ):
            await etcd.put(prefix + b"1", b"")
            await ask(guarded, "user", "delete", WORKER.name)
            await eventually(lambda: "Unauthenticated" in reflector.statistics().reconnects)
            with pytest.raises(Unauthenticated, match="'worker'"):
                await etcd.put(prefix + b"2", b"")
            await direct.put(prefix + b"3", b"")
            guarded.add_user(WORKER, "everything")
            await judge_delivery(sink, direct, prefix)
            await etcd.put(prefix + b"4", b"")
            assert reflector.statistics().relists == {}


async def test_a_permission_is_revoked_for_a_while(
    guarded: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """An open stream still hears; the next one is refused, says so, and is tried again."""
    sink = RecordingSink()
    permission = ("everything", "readwrite", "--from-key", "")
    with structlog.testing.capture_logs() as logs, trio.fail_after(_PATIENCE):
        async with (
            connected(guarded, transport, user=ROOT) as direct,
            connected(guarded, transport) as etcd,
            reflecting(etcd, prefix, sink, settings=BRIEF) as reflector,
        ):
            await etcd.put(prefix + b"1", b"")
            await ask(guarded, "role", "revoke-permission", "everything", "--from-key", "")
            await eventually(
                lambda: reflector.statistics().reconnects.get("PermissionDenied", 0) >= 2
            )
            for call in (etcd.put(prefix + b"2", b""), etcd.range(KeyRange.of_prefix(prefix))):
                with pytest.raises(PermissionDenied, match="user 'worker' needs"):
                    await call
            await direct.put(prefix + b"3", b"")
            await ask(guarded, "role", "grant-permission", *permission)
            await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}
    lost = [line["error"] for line in logs if line["event"] == "watch_lost"]
    assert any("permission denied: user 'worker' needs read on" in error for error in lost)


# Permissions.

LEASED = Put(b"/p/a", b"", 7)
UNTOUCHED = Compare(b"/p/a", CompareTarget.MOD_REVISION, CompareResult.EQUAL, 1)


@pytest.mark.parametrize(
    ("method", "request_", "words"),
    [
        (rpc.RANGE, rpc.RangeRequest(KeyRange.of_key(b"/p/a")), "read on the key /p/a"),
        (
            rpc.RANGE,
            rpc.RangeRequest(KeyRange.of_prefix(b"/p/")),
            "read on all keys that begin with /p/",
        ),
        (
            rpc.RANGE,
            rpc.RangeRequest(KeyRange(b"/p/", b"/p/m")),
            "read on the keys from /p/ up to /p/m",
        ),
        (rpc.RANGE, rpc.RangeRequest(KeyRange(b"a", b"\0")), "read on all keys from a on"),
        (rpc.RANGE, rpc.RangeRequest(KeyRange.of_key(b"\0\xff")), r"read on the key \x00\\xff"),
        (rpc.PUT, Put(b"/p/a", b""), "write on the key /p/a"),
        (rpc.PUT, LEASED, "write on the key /p/a; and write on every key of its lease"),
        (
            rpc.DELETE,
            Delete(KeyRange.of_prefix(b"/p/")),
            "write on all keys that begin with /p/",
        ),
        (
            rpc.TXN,
            Txn([UNTOUCHED], [LEASED], [Get(KeyRange.of_key(b"/p/a"))]),
            "read and write on the key /p/a; and write on every key of its lease",
        ),
        (
            rpc.TXN,
            Txn([UNTOUCHED._replace(range_end=b"/p/c")], [Txn([], [Put(b"/q", b"")])]),
            "read on the keys from /p/a up to /p/c; write on the key /q",
        ),
        (
            rpc.TXN,
            Txn([], [Put(b"/p/%d" % n, b"") for n in range(5)]),
            "write on the key /p/0; write on the key /p/1; write on the key /p/2; and on 2 more",
        ),
        (rpc.LEASE_REVOKE, 7, "write on every key of the lease"),
        (rpc.ALARMS, None, "the role root"),
    ],
)
def test_what_a_request_needs(
    method: rpc.Rpc[object, object], request_: object, words: str
) -> None:
    """In words, each key once."""
    assert needed_for(method, request_) == words


DOCUMENT = ROOT_DIRECTORY / "docs" / "least-privilege.md"
PREFIX = DEFAULT_KEY_PREFIX.decode()
HISTORY = ROOT_DIRECTORY / "tests" / "data" / "taskaction_history.jsonl"


@pytest.fixture(params=["path", pytest.param("packaged", marks=pytest.mark.slow)])
def documented(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdCluster]:
    """Each etcd at hand, after the commands of the document."""
    binary = packaged_binary() if request.param == "packaged" else sound_binary_on_path()
    if binary is None:
        pytest.skip(f"there is no etcd: {request.param}")
    cluster = EtcdCluster(tmp_path / "etcd", binary=binary)
    try:
        cluster.start()
        (tmp_path / "root.password").write_text(f"{ROOT.password}\n")
        (tmp_path / "worker.password").write_text(f"{WORKER.password}\n")
        blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        for block in blocks[:2]:
            subprocess.run(
                ["bash", "-e", "-c", block],
                check=True,
                capture_output=True,
                cwd=tmp_path,
                env={
                    "PATH": f"{etcdctl_for(binary.path).parent}:{os.environ['PATH']}",
                    "ETCDCTL_API": "3",
                    "ETCDCTL_ENDPOINTS": cluster.endpoints[0],
                },
            )
        cluster.root = ROOT
        yield cluster
    finally:
        cluster.stop()


def as_worker(cluster: EtcdCluster, transport: TransportName) -> dict[str, Any]:
    """The variables of the command."""
    return {
        "ETCDCTL_ENDPOINTS": cluster.endpoints[0],
        "ETCDCTL_USER": WORKER.name,
        "ETCDCTL_PASSWORD": str(WORKER.password),
        "ETCD_ACTIONS_TRANSPORT": transport,
    }


@pytest.mark.slow
async def test_the_role_of_the_document_is_enough(
    documented: EtcdCluster, transport: TransportName, tmp_path: Path
) -> None:
    """Everything runs with it: the history is written, watched, marked and shown."""
    env = as_worker(documented, transport)
    lines = HISTORY.read_text().splitlines(keepends=True)
    unmarked = [line for line in lines if _MARK not in base64.b64decode(_value(line))]
    history = tmp_path / "history.jsonl"
    history.write_text("".join(unmarked))
    with (
        running(tmp_path, "run", **env) as run,
        running(tmp_path, "watch", **env) as watch,
    ):
        await run.logged("synced")
        await watch.row("SYNCED")
        replayed = await trio.to_thread.run_sync(partial(finish, "replay", history, **env))
        assert (replayed.code, replayed.err) == (0, "")

        keys = KeyRange.of_prefix(DEFAULT_KEY_PREFIX)
        async with connected(documented, "grpc", user=ROOT) as direct:
            with trio.fail_after(_PATIENCE):
                await until_stored(direct, keys, all_marked)
        for process in (run, watch):
            process.signal(signal.SIGTERM)
            assert await process.wait() == 0
        assert not run.logs("handler_failed")
        assert not run.logs("watch_lost")
    listed = await trio.to_thread.run_sync(partial(finish, "list", **env))
    assert (listed.code, listed.err) == (0, "")
    assert len(listed.out.splitlines()) == 10
    assert sum(json.loads(line)["recorded"] for line in listed.out.splitlines()) == 9


@pytest.mark.slow
async def test_the_role_of_the_document_is_enough_for_the_front_door(
    documented: EtcdCluster, tmp_path: Path
) -> None:
    """A run is created, shown and aborted; a process that comes later collects it."""
    env = as_worker(documented, "grpc")
    options = ("--blob-dir", tmp_path / "blobs", "--executor", "none")
    with running(tmp_path, "run", *options, **env) as run:
        address = (await run.logged("serving"))["listen"]
        asker = RunsAsker(SimpleNamespace(address=address))  # type: ignore[arg-type]
        await asker("CreateRun", create("r1"))
        await asker("AbortRun", pb.AbortRunRequest(run_id=run_id("r1")))

        async def recorded() -> bool:
            found = await asker("GetRunDetails", pb.GetRunDetailsRequest(run_id=run_id("r1")))
            listed = await trio.to_thread.run_sync(partial(finish, "list", **env))
            # Collected is only what is marked, and the next sweep is a minute away.
            marked = [json.loads(line)["recorded"] for line in listed.out.splitlines()]
            ended = found.details.action.status.phase == ActionPhase.ACTION_PHASE_ABORTED
            return bool(ended and marked == [True])

        await eventually_holds(recorded)
        run.signal(signal.SIGTERM)
        assert await run.wait() == 0
        for event in ("handler_failed", "unit_failed", "watch_lost"):
            assert not run.logs(event)
    with running(tmp_path, "run", *options, "--retain-runs", "1ms", **env) as later:
        collected = await later.logged("runs_collected")
        assert (collected["records"], collected["objects"], collected["histories"]) == (1, 1, 1)
        later.signal(signal.SIGTERM)
        assert await later.wait() == 0
        assert not later.logs("runs_not_collected")
    keys = Keyspace(DEFAULT_KEY_PREFIX)
    async with connected(documented, "grpc", user=ROOT) as direct:
        for prefix in (keys.prefix, keys.runs, keys.run_tasks, keys.histories):
            assert (await direct.range(KeyRange.of_prefix(prefix))).kvs == []


@pytest.mark.parametrize(
    ("grant", "command", "missing"),
    first_everyday(
        [
            pytest.param(None, ["run"], f"read on all keys that begin with {PREFIX}", id="run"),
            pytest.param(
                ("readwrite", "--prefix=true", PREFIX),
                ["run"],
                f"read on the key /etcd-actions{PREFIX}position/",
                id="run-own-keys",
            ),
            pytest.param(None, ["watch"], f"read on all keys that begin with {PREFIX}", id="watch"),
            pytest.param(None, ["replay", HISTORY], f"read on the key {PREFIX}", id="replay"),
            pytest.param(
                ("write", "--prefix=true", PREFIX),
                ["run"],
                f"read on all keys that begin with {PREFIX}",
                id="run-no-read",
            ),
            pytest.param(
                ("readwrite", PREFIX, PREFIX + "flyte/rk"),
                ["list"],
                f"read on all keys that begin with {PREFIX}",
                id="list-half",
            ),
            pytest.param(
                ("read", "--prefix=true", PREFIX),
                ["replay", HISTORY],
                f"read and write on the key {PREFIX}flyte/",
                id="replay-no-write",
            ),
            pytest.param(
                ("readwrite", "--prefix=true", PREFIX.rstrip("/") + "-other/"),
                ["watch", "--namespace", "flyte"],
                f"read on all keys that begin with {PREFIX}flyte/",
                id="watch-namespace",
            ),
        ]
    ),
)
async def test_what_is_missing_is_named(
    shared: EtcdCluster,
    grant: tuple[str, ...] | None,
    command: list[str],
    missing: str,
) -> None:
    """The command ends with 4, and says which permission and what to do."""
    with limited(shared, "grpc", *([grant] if grant else [])) as env:
        done = await trio.to_thread.run_sync(partial(finish, *command, **env))
    assert done.code == 4, done.err
    complaint = done.err.splitlines()[-1]
    assert f"permission denied: user 'limited' needs {missing}" in complaint
    assert "grant the etcd user" in complaint
    assert not [secret for secret in _SECRETS if secret in done.err + done.out]


@pytest.mark.slow
async def test_marks_without_write_are_tried_until_it_is_granted(
    shared: EtcdCluster, transport: TransportName, tmp_path: Path, prefix: bytes
) -> None:
    """It says which key it may not write; then the mark is made."""
    (action,) = make_run(prefix, "rw1", 1)
    with (
        limited(
            shared,
            transport,
            ("read", "--prefix=true", prefix.decode()),
            ("readwrite", "--prefix=true", Keyspace(prefix).side.decode()),
        ) as env,
        trio.fail_after(_PATIENCE),
    ):
        async with connected(shared, "grpc", user=ROOT) as direct:
            await direct.put(action.key, action.ended)
            common = ("--prefix", prefix.decode())
            with running(tmp_path, "run", *common, **env) as run:
                failed = await run.logged("handler_failed")
                assert (
                    f"user 'limited' needs read and write on the key {action.key.decode()}"
                    in failed["error"]
                )
                grant = ("readwrite", "--prefix=true", prefix.decode())
                await ask(shared, "role", "grant-permission", "limited", *grant)
                await until_stored(direct, KeyRange.of_prefix(prefix), all_marked)
                run.signal(signal.SIGTERM)
                assert await run.wait() == 0


async def test_a_watch_of_more_than_is_allowed(
    shared: EtcdCluster, transport: TransportName, prefix: bytes
) -> None:
    """A stream that is refused says which keys it was refused for."""
    user = User(name="limited", password=_SECRETS[3])
    keys = KeyRange.of_prefix(prefix)
    with (
        limited(shared, transport, ("read", prefix.decode(), prefix.decode() + "m")),
        trio.fail_after(_PATIENCE),
    ):
        async with connected(shared, transport, user=user) as etcd:
            half = KeyRange(prefix, prefix + b"m")
            await etcd.range(half)
            said = ""
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, half, 1))
                stream.create(WatchCreate(2, KeyRange(half.end, keys.end), 1))
                while not said:
                    try:
                        said = next(
                            (
                                each.cancel_reason
                                for each in await stream.receive()
                                if each.canceled
                            ),
                            "",
                        )
                    except PermissionDenied as error:
                        said = str(error)
    assert error_kind(said) is PermissionDenied
    assert "user 'limited' needs read on " in said
    assert prefix.decode() in said


@contextmanager
def limited(
    cluster: EtcdCluster, transport: TransportName, *grants: tuple[str, ...]
) -> Iterator[dict[str, Any]]:
    """A user with these permissions; gives the variables of the command."""
    user = User(name="limited", password=_SECRETS[3])
    with ExitStack() as stack:
        cluster.etcdctl("role", "add", "limited")
        stack.callback(cluster.etcdctl, "role", "delete", "limited")
        for kind, *keys in grants:
            cluster.etcdctl("role", "grant-permission", "limited", kind, *keys)
        cluster.add_user(user, "limited")
        stack.callback(cluster.etcdctl, "user", "delete", user.name)
        yield as_worker(cluster, transport) | {
            "ETCDCTL_USER": user.name,
            "ETCDCTL_PASSWORD": str(user.password),
        }


def _value(line: str) -> str:
    return str(json.loads(line).get("value") or "")


_MARK = b'"flyte.org/terminal-status-recorded":"true"'
