"""Flyte's run service over gRPC, by :mod:`etcd_actions.http2`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import trio

from etcd_actions import http2
from etcd_actions._internal.argument_types import checks_types
from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.call_time import time_left
from etcd_actions._internal.containment import describe
from etcd_actions._internal.owned_tasks import owned_tasks
from etcd_actions.errors import ConfigError, RunServiceRejected
from etcd_actions.etcd.connection_settings import Tls
from etcd_actions.etcd.endpoints import Endpoint, check_host
from etcd_actions.etcd.tls import check_tls, client_context, explained
from etcd_actions.http2 import Channel, ChannelSettings, Code, KeepAlive, Target
from etcd_actions.model import ActionObject, ActionUpdate
from etcd_actions.run_service import status_codes
from etcd_actions.run_service.protocol import RunService
from etcd_actions.run_service.status_codes import CallFailed, Meaning
from etcd_actions.run_service.status_stream import METHOD as STREAM
from etcd_actions.run_service.status_stream import StatusStreams
from etcd_actions.run_service.target import parse_target
from etcd_actions.run_service.unsettled import Unsettled

_SERVICE: Final = "/flyteidl2.workflow.InternalRunService/"
_LARGEST_ANSWER: Final = 16 * 1024 * 1024
_RECONNECTING: Final = Backoff(initial=0.1, cap=5.0)
_MARGIN: Final = 0.5
"""Seconds after its deadline in which a call may still be applied: the server counts from
the call's arrival."""
_LEAST_CALL: Final = 0.001
"""Seconds; a call with less time is not sent."""
_REFUSALS: Final = 3
"""The most times that a refused call is sent, before the last one."""
_REFUSED_PAUSE: Final = 0.01
"""Seconds before a call that was refused is sent again."""


@checks_types
@asynccontextmanager
async def open_run_service(
    target: str | Endpoint,
    *,
    tls: Tls | None = None,
    deadline: float = 5.0,
    concurrency: int = 128,
    streaming: bool = True,
    keepalive_time: float = 10.0,
    keepalive_timeout: float = 3.0,
) -> AsyncIterator[GrpcRunService]:
    """Connect to Flyte's ``InternalRunService``. It need not be reachable yet.

    Leaving the context ends the calls in flight.

    Args:
        target: Its address: ``host:port``, ``http://host:port`` or ``https://host:port``.
        tls: Files for TLS, which an ``https`` target uses in any case. They are checked at once,
            and read again for each new connection.
        deadline: Seconds that one call may take.
        concurrency: The most calls in flight at a time.
        streaming: Whether to use a stream for status updates if the server has one.
        keepalive_time: Seconds of silence after which the connection is probed, at least 10.
        keepalive_timeout: Seconds that the answer to the probe may take.

    Raises:
        ConfigError: ``flyteidl2`` is not installed, or the target, a number or a file of ``tls``
            is unusable.
        WrongType: An argument is of another type.
    """
    try:
        from etcd_actions.run_service import requests  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Flyte's messages are not installed ({error}): pip install etcd-actions[flyte]"
        ) from error
    for name, number, least in (
        ("deadline", deadline, 0.001),
        ("concurrency", concurrency, 1),
        ("keepalive_timeout", keepalive_timeout, 0.001),
    ):
        if not number >= least:
            raise ConfigError(f"{name}: {number:g} is too small: give {least:g} or more")
    settings = ChannelSettings(
        keepalive=KeepAlive(time=max(10.0, keepalive_time), timeout=keepalive_timeout),
        backoff=_RECONNECTING,
        largest_answer=_LARGEST_ANSWER,
    )
    server = _target(parse_target(target) if isinstance(target, str) else target, tls)
    async with owned_tasks("the run service's client") as nursery:
        channel = Channel(nursery, server, settings)
        service = GrpcRunService(
            channel,
            nursery,
            requests,
            deadline=deadline,
            concurrency=concurrency,
            streaming=streaming,
        )
        try:
            yield service
        finally:
            service._close()
            channel.close()


class GrpcRunService(RunService):
    """Implements :class:`~etcd_actions.run_service.RunService`; see :func:`open_run_service`.

    A status update is sent over a stream, if the server has one and it is not full; otherwise by a
    call.
    """

    def __init__(
        self,
        channel: Channel,
        nursery: trio.Nursery,
        requests: Any,
        *,
        deadline: float,
        concurrency: int,
        streaming: bool,
    ) -> None:
        self._channel = channel
        self._requests = requests
        self._deadline = deadline
        self._limit = trio.CapacityLimiter(concurrency)
        self._streams = StatusStreams(channel, nursery, deadline=deadline) if streaming else None
        self._unsettled = Unsettled()

    async def record_action(self, update: ActionUpdate, action: ActionObject | None) -> None:
        """Report the record of an action. After a cancellation it may be applied.

        Raises:
            RunServiceUnavailable: A later call may be accepted.
            RunServiceRejected: It was rejected for good.
        """
        what = f"RecordAction of {update.name}"
        request = _written(what, lambda: self._requests.record_action(update, action))
        async with self._limit:
            try:
                by = trio.current_time() + self._deadline
                response = await self._call("RecordAction", request, by)
            except CallFailed as failure:
                _check_failure(failure)
                return
        _check(response, request, what)

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Report a state of the action. After a cancellation it may be applied.

        It ends by the deadlines of the cancel scopes around it; the server receives that deadline.

        Raises:
            RunServiceActionUnknown: The run service has no record of the action.
            RunServiceUnavailable: A later call may be accepted.
            RunServiceRejected: It was rejected for good.
        """
        what = f"UpdateActionStatus of {update.name}"
        request = _written(what, lambda: self._requests.update_action_status(update))
        async with self._limit:
            await self._update(update, request)

    def unsettled_until(self, key: bytes) -> float:
        """The time, on trio's clock, until which a call of unknown outcome may still be applied.

        Before that time a RUNNING could be applied after a terminal state, and revive the action:
        Flyte's run service accepts RUNNING after FAILED.
        """
        return self._unsettled.until(key)

    async def _update(self, update: ActionUpdate, request: Any) -> None:
        by = trio.current_time() + self._deadline
        # A terminal state that is applied late changes nothing.
        settled = update.phase.is_terminal
        try:
            response = await self._report(request, by)
            settled = True
        except CallFailed as failure:
            settled = settled or failure.unsent
            _check_failure(failure, of_status=True)
            return
        finally:
            if not settled:
                self._unsettled.note(update.key, by + _MARGIN, now=trio.current_time())
        _check(response, request, f"UpdateActionStatus of {update.name}", of_status=True)

    async def _report(self, request: Any, by: float) -> Any:
        stream = self._streams.current() if self._streams is not None else None
        if stream is not None:
            try:
                return await stream.call(request, self._timeout("UpdateActionStatus", by))
            except CallFailed as failure:
                if not (failure.unsent or stream.unsupported):
                    raise
        return await self._call("UpdateActionStatus", request, by)

    async def _call(self, method: str, request: Any, by: float) -> Any:
        message = request.SerializeToString()
        try:
            answer = await self._sent(method, message, by)
        except http2.CallFailed as failure:
            details = explained(failure.details)
            raise CallFailed(method, failure.code, details, unsent=failure.not_done) from None
        try:
            return self._requests.answer(method).FromString(answer)
        except Exception as error:
            details = f"the answer cannot be read: {describe(error)}"
            raise CallFailed(method, Code.INTERNAL, details) from error

    async def _sent(self, method: str, message: bytes, by: float) -> bytes:
        """Send a message, and again if the server certainly did nothing with it.

        A server counts a stream until its client has received the answer. At its limit it refuses
        the next one for a moment.
        """
        for _ in range(_REFUSALS):
            try:
                return await self._sent_once(method, message, by)
            except http2.CallFailed as failure:
                if not (failure.not_done and failure.connected) or trio.current_time() >= by:
                    raise
            await trio.sleep(_REFUSED_PAUSE)
        return await self._sent_once(method, message, by)

    async def _sent_once(self, method: str, message: bytes, by: float) -> bytes:
        await self._channel.connect(within=self._timeout(method, by))
        # Directly before the call is sent: the process may have been stopped in between.
        within = self._timeout(method, by)
        return await self._channel.unary(_SERVICE + method, message, within=within, resend=False)

    def _timeout(self, method: str, by: float) -> float:
        """Seconds that a call may take which is sent now.

        Raises:
            CallFailed: None are left; it was not sent.
        """
        left = min(by - trio.current_time(), time_left())
        if left < _LEAST_CALL:
            raise CallFailed(method, Code.DEADLINE_EXCEEDED, status_codes.NO_TIME_LEFT, unsent=True)
        return left

    def _close(self) -> None:
        if self._streams is not None:
            self._streams.close()


def _target(server: Endpoint, tls: Tls | None) -> Target:
    try:
        check_host(server.host)
    except ValueError as error:
        raise ConfigError(f"run service {server}: {error}") from None
    if tls is None and not server.encrypted:
        return Target(host=server.host, port=server.port)
    if server.encrypted is False:
        raise ConfigError(
            f"run service http://{server} is not encrypted, but TLS is configured: "
            "write https:// or omit the scheme"
        )
    tls = tls or Tls()
    if tls.skip_verify:
        raise ConfigError("tls: skip_verify is not for the run service: give its certificate as ca")
    check_tls(tls)
    return Target(
        host=server.host,
        port=server.port,
        tls=partial(client_context, tls),
        server_name=tls.server_name,
    )


def _written(what: str, write: Callable[[], Any]) -> Any:
    """Make a message, and check that it can be encoded.

    Raises:
        RunServiceRejected: It cannot, now and later.
    """
    try:
        message = write()
        message.SerializeToString()
    except MemoryError:
        raise
    except Exception as error:
        text = f"{what}: it cannot be put into Flyte's message: {describe(error)}"
        raise RunServiceRejected(text, code=Code.INVALID_ARGUMENT) from error
    return message


def _check(response: Any, request: Any, what: str, *, of_status: bool = False) -> None:
    """Raise the error of an answer that does not accept."""
    if not response.ByteSize():
        # Flyte's service names the action in its answer. An empty one may be another server's.
        raise status_codes.error(Meaning.TRANSIENT, Code.UNKNOWN, f"{what}: the answer is empty")
    if response.HasField("action_id") and response.action_id.name != request.action_id.name:
        other = response.action_id.name
        raise status_codes.error(
            Meaning.TRANSIENT, Code.UNKNOWN, f"{what}: the answer is about {other!r}"
        )
    status = response.status
    meant = status_codes.meaning(status.code)
    if of_status:
        meant = status_codes.meaning_of_status(meant, status.code, status.message)
    if meant is not Meaning.ACCEPTED:
        raise status_codes.error(meant, status.code, f"{what}: {status.message}")


def _check_failure(failure: CallFailed, *, of_status: bool = False) -> None:
    """Raise the error of a call that ended without an answer, unless its code accepts."""
    if failure.method == STREAM:
        # The stream ended, for all its calls: its code is not about one of them.
        raise failure.error(Meaning.TRANSIENT) from None
    meant = status_codes.meaning_of_call(failure.code, failure.details)
    if of_status:
        meant = status_codes.meaning_of_status(meant, failure.code, failure.details)
    if meant is not Meaning.ACCEPTED:
        raise failure.error(meant) from None
