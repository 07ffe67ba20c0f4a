"""Users, passwords and tokens, on an etcd that wants them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import structlog.testing
import trio
import trio.testing

from etcd_actions import open_etcd
from etcd_actions.errors import (
    EtcdActionsError,
    PermissionDenied,
    Unauthenticated,
)
from etcd_actions.etcd import Etcd, EtcdClient, TransportName, User
from etcd_actions.etcd.api import (
    KeyRange,
    WatchCreate,
    WatchStream,
)
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.watch import Reflector
from tests.etcd.users import ANOTHER, CALLS, PATIENCE, SECRETS, connected, tells_no_secret
from tests.support.cluster import ROOT, WORKER, EtcdCluster, signed_tokens
from tests.support.etcd_users import EVERYTHING
from tests.support.everyday import first_everyday
from tests.support.proxy import open_proxy
from tests.support.recording import RecordingSink, eventually
from tests.support.scene import REFLECTOR, UNHURRIED, judge_delivery, reflecting


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
    users_etcd: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Many calls at once and a stream: one question."""
    before = users_etcd.authentications()
    with trio.fail_after(PATIENCE):
        async with connected(users_etcd, transport) as etcd:
            await put_at_once(etcd, prefix)
            async with etcd.watch() as stream:
                await first_event(stream, KeyRange.of_prefix(prefix), 1)
    assert users_etcd.authentications() - before == 1


async def test_who_names_nobody_is_refused(
    users_etcd: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """No user, to an etcd that wants one."""
    async with connected(users_etcd, transport, user=None) as etcd:
        with pytest.raises(Unauthenticated, match="user name is empty"):
            await etcd.put(prefix, b"")
        sink = RecordingSink()
        reflector = Reflector(etcd, KeyRange.of_prefix(prefix), sink)
        with pytest.raises(Unauthenticated):
            await reflector.run()


@pytest.mark.parametrize(
    "user", [ANOTHER, User(name="nobody", password=SECRETS[3])], ids=["password", "user"]
)
async def test_a_wrong_password_is_asked_once(
    users_etcd: EtcdCluster, prefix: bytes, transport: TransportName, user: User
) -> None:
    """Many calls at once: one question, each refused, and nobody learns the password."""
    began, before = trio.current_time(), users_etcd.authentications()
    errors: list[Unauthenticated] = []
    with structlog.testing.capture_logs() as logs, trio.fail_after(PATIENCE):
        async with connected(users_etcd, transport, user=user) as etcd:

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
            assert not [secret for secret in SECRETS if secret in repr(vars(etcd))]
    asked, elapsed = users_etcd.authentications() - before, trio.current_time() - began
    assert 1 <= asked <= most_questions(elapsed)
    for error in errors:
        tells_no_secret(error)
    assert not [secret for secret in SECRETS if secret in repr(logs)]


@pytest.mark.slow
async def test_an_expired_token_is_renewed_once(
    users_etcd: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Unused for too long: the calls succeed, with one question for all of them."""
    with trio.fail_after(PATIENCE):
        async with connected(users_etcd, transport) as etcd:
            await etcd.put(prefix, b"")
            await until_expired(users_etcd, token_of(etcd))
            before = users_etcd.authentications()
            await put_at_once(etcd, prefix)
            assert users_etcd.authentications() - before == 1


@pytest.mark.slow
async def test_a_stream_outlives_its_token(
    users_etcd: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """A quiet watch with an expired token goes on; cut off, it comes back with another."""
    (member,) = users_etcd.members
    sink = RecordingSink()
    with trio.fail_after(PATIENCE):
        async with (
            open_proxy(member.port) as proxy,
            open_etcd(proxy.endpoint, transport=transport, user=WORKER) as etcd,
            connected(users_etcd, transport) as direct,
            # Its questions to a quiet etcd would keep the token.
            reflecting(etcd, prefix, sink, settings=UNHURRIED) as reflector,
        ):
            await direct.put(prefix + b"1", b"")
            await until_expired(users_etcd, token_of(etcd), token_of(direct))
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
    with trio.fail_after(PATIENCE):
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
    with trio.fail_after(PATIENCE):
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
    with trio.fail_after(PATIENCE):
        async with connected(guarded, transport) as etcd:
            await put_at_once(etcd, prefix)
            for n in range(2):
                guarded.users.add(User(name=f"somebody{n}", password="x"))
                before = guarded.authentications()
                await put_at_once(etcd, prefix)
                assert guarded.authentications() - before == questions


async def test_authentication_is_switched_on_and_off(
    own: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """A client with a user works without, and goes on when the question comes up, and again."""
    sink = RecordingSink()
    with trio.fail_after(PATIENCE):
        async with connected(own, transport) as etcd, connected(own, transport) as direct:
            await put_at_once(direct, prefix)
            async with reflecting(etcd, prefix, sink) as reflector:
                own.enable_auth()
                await put_at_once(direct, prefix)
                own.disable_auth()
                await put_at_once(direct, prefix)
                own.users.enable()
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
    with structlog.testing.capture_logs() as logs, trio.fail_after(PATIENCE):
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
    assert not [secret for secret in SECRETS if secret in repr(logs)]


BRIEF = replace(REFLECTOR, stream_life=0.2)


async def test_the_user_is_deleted(
    guarded: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """Refused, and told so; made again, all goes on."""
    sink = RecordingSink()
    with trio.fail_after(PATIENCE):
        async with (
            connected(guarded, transport, user=ROOT) as direct,
            connected(guarded, transport) as etcd,
            reflecting(etcd, prefix, sink, settings=BRIEF) as reflector,
        ):
            await etcd.put(prefix + b"1", b"")
            guarded.users.delete(WORKER)
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
    with structlog.testing.capture_logs() as logs, trio.fail_after(PATIENCE):
        async with (
            connected(guarded, transport, user=ROOT) as direct,
            connected(guarded, transport) as etcd,
            reflecting(etcd, prefix, sink, settings=BRIEF) as reflector,
        ):
            await etcd.put(prefix + b"1", b"")
            guarded.users.revoke("everything", EVERYTHING)
            await eventually(
                lambda: reflector.statistics().reconnects.get("PermissionDenied", 0) >= 2
            )
            for call in (etcd.put(prefix + b"2", b""), etcd.range(KeyRange.of_prefix(prefix))):
                with pytest.raises(PermissionDenied, match="user 'worker' needs"):
                    await call
            await direct.put(prefix + b"3", b"")
            guarded.users.grant("everything", "readwrite", EVERYTHING)
            await judge_delivery(sink, direct, prefix)
            assert reflector.statistics().relists == {}
    lost = [line["error"] for line in logs if line["event"] == "watch_lost"]
    assert any("permission denied: user 'worker' needs read on" in error for error in lost)
