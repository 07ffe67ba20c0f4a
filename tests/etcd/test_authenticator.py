"""The token of a user: asked for once, renewed, refused ever more rarely."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import trio
import trio.testing

from etcd_actions._internal.backoff import Backoff
from etcd_actions.errors import (
    EtcdActionsError,
    InvalidRequest,
    Unauthenticated,
    Unavailable,
)
from etcd_actions.etcd import User
from etcd_actions.etcd.auth import Authenticator
from etcd_actions.etcd.gateway import errors as gateway_errors
from etcd_actions.etcd.gateway.wire import Refusal
from etcd_actions.etcd.grpc import errors as grpc_errors
from etcd_actions.etcd.rpc import AuthenticateRequest
from etcd_actions.http2 import CallFailed, Code
from tests.etcd.users import CALLS, SECRETS, tells_no_secret
from tests.support.cluster import WORKER


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
    """Called once a second for ten minutes: the delays double up to the longest."""
    asked = Asked(InvalidRequest("authentication failed, invalid user ID or password"))
    authenticator = Authenticator(WORKER, backoff=Backoff(1, 60))
    for _ in range(600):
        with pytest.raises(
            Unauthenticated, match=r"invalid user ID or password.*'worker'"
        ) as caught:
            await authenticator.token(asked, 5)
        tells_no_secret(caught.value)
        await trio.sleep(1)  # The pace of the callers, on a clock that jumps.
    gaps = [after - before for before, after in itertools.pairwise(asked.times)]
    for number, gap in enumerate(gaps):
        assert min(60, 2.0**number) * 0.5 <= gap <= min(60, 2.0**number) + 1.2
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
    request = AuthenticateRequest(WORKER.name, SECRETS[1])
    for text in (repr(WORKER), str(WORKER), repr(request), str(request), f"{request}"):
        assert "worker" in text
        assert SECRETS[1] not in text


@pytest.mark.parametrize(
    "text", ["etcdserver: revision of auth store is old", "auth: revision in header is old"]
)
def test_a_token_from_before_a_change_of_users_is_known_by_its_text(text: str) -> None:
    """As etcd says it, and as 3.5.1 does: the call was refused, and wants a new token."""
    call = CallFailed(Code.UNKNOWN, text, answered=True)
    failed = grpc_errors.from_failure(call, what="KV/Put", writes=True)
    assert type(failed) is Unauthenticated
    asked = gateway_errors.CallInfo("KV/Put", writes=True)
    refused = gateway_errors.from_refusal(Refusal(2, text), asked)
    assert type(refused.error) is Unauthenticated
