"""Flyte's run service over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import trio

from etcd_actions.call_time import time_left
from etcd_actions.containment import describe
from etcd_actions.errors import ConfigError, RunServiceRejected
from etcd_actions.etcd.connection import Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.tls import explained, read_pem
from etcd_actions.grpc_bridge import Bell, finished
from etcd_actions.model import ActionUpdate, Phase, TaskAction
from etcd_actions.run_service import codes
from etcd_actions.run_service.codes import CallFailed, Code, Meaning
from etcd_actions.run_service.status_stream import METHOD as STREAM
from etcd_actions.run_service.status_stream import StatusStreams
from etcd_actions.run_service.target import parse_target
from etcd_actions.run_service.unsettled import Unsettled

_SERVICE = "/flyteidl2.workflow.InternalRunService/"
_LARGEST_ANSWER = 16 * 1024 * 1024
_MARGIN = 0.5
"""Seconds after its deadline in which a call may still be applied: the server counts from
when it got it."""
_LEAST_CALL = 0.001


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
    """Connect to Flyte's ``InternalRunService``. It need not be there yet.

    Leaving the context ends the calls that are under way.

    Args:
        target: Where it listens: ``host:port``, ``http://host:port`` or ``https://host:port``.
        tls: Files for TLS, which an ``https`` target uses in any case. They are read once.
        deadline: Seconds that one call may take.
        concurrency: How many calls may be under way at once.
        streaming: Use a stream for status updates where the server has one.
        keepalive_time: Seconds of silence after which the connection is asked for life; less
            than 10 is raised to 10.
        keepalive_timeout: Seconds that the answer to that may take.

    Raises:
        ConfigError: ``flyteidl2`` is not installed, the target or a number is unusable, or a
            file of ``tls`` is.
    """
    try:
        from etcd_actions.run_service import messages  # noqa: PLC0415
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
    options: tuple[tuple[str, int | str], ...] = (
        ("grpc.keepalive_time_ms", round(max(10.0, keepalive_time) * 1000)),
        ("grpc.keepalive_timeout_ms", round(keepalive_timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", round(keepalive_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.max_receive_message_length", _LARGEST_ANSWER),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    )
    channel = _channel(parse_target(target) if isinstance(target, str) else target, tls, options)
    service = GrpcRunService(
        channel,
        messages,
        deadline=deadline,
        concurrency=concurrency,
        streaming=streaming,
    )
    try:
        yield service
    finally:
        await service._close()
        channel.close()


class GrpcRunService:
    """Implements :class:`~etcd_actions.run_service.RunService`; see :func:`open_run_service`.

    Status updates go over one stream where the server has it and as far as it carries them,
    else by a call each.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        messages: Any,
        *,
        deadline: float,
        concurrency: int,
        streaming: bool,
    ) -> None:
        self._channel = channel
        self._messages = messages
        self._deadline = deadline
        self._limit = trio.CapacityLimiter(concurrency)
        self._bell = Bell()
        self._stubs: dict[str, Any] = {}
        self._streams = StatusStreams(channel, self._bell, deadline=deadline) if streaming else None
        self._unsettled = Unsettled()

    def wants(self, phase: Phase, deleted: bool) -> bool:
        """Every state, and every deletion."""
        return True

    async def record_action(self, update: ActionUpdate, action: TaskAction | None) -> None:
        """Make the action known. Cancelled, it may have been, or may still be.

        Raises:
            RunServiceUnavailable: It may be accepted when told again.
            RunServiceRejected: It never will.
        """
        what = f"RecordAction of {update.name}"
        request = _written(what, lambda: self._messages.record_action(update, action))
        async with self._limit:
            try:
                response = await self._call("RecordAction", request)
            except CallFailed as failure:
                _check_failure(failure)
                return
        _check(response, request, what)

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Tell a state of the action. Cancelled, it may have been told, or may still be.

        It takes no longer than the cancel scopes around it allow: the server is told.

        Raises:
            RunServiceUnavailable: It may be accepted when told again.
            RunServiceRejected: It never will.
        """
        what = f"UpdateActionStatus of {update.name}"
        request = _written(what, lambda: self._messages.update_action_status(update))
        async with self._limit:
            await self._update(update, request)

    def unsettled_until(self, key: bytes) -> float:
        """Until when a call of unknown outcome about an action may land, in trio's time.

        An ending that is told before that could have a RUNNING land behind it, which revives the
        action: the run service lets FAILED go back.
        """
        return self._unsettled.until(key)

    async def _update(self, update: ActionUpdate, request: Any) -> None:
        until = trio.current_time() + self._deadline + _MARGIN
        # An ending that lands late says nothing new.
        settled = update.phase.is_terminal
        try:
            response = await self._ask(request)
            settled = True
        except CallFailed as failure:
            settled = settled or failure.unsent
            _check_failure(failure, of_status=True)
            return
        finally:
            if not settled:
                self._unsettled.note(update.key, until, now=trio.current_time())
        _check(response, request, f"UpdateActionStatus of {update.name}", of_status=True)

    async def _ask(self, request: Any) -> Any:
        stream = self._streams.current() if self._streams is not None else None
        if stream is not None:
            try:
                return await stream.ask(request, self._timeout())
            except CallFailed:
                if not stream.unsupported:
                    raise
        return await self._call("UpdateActionStatus", request)

    async def _call(self, method: str, request: Any) -> Any:
        stub = self._stubs.get(method)
        if stub is None:
            stub = self._stubs[method] = self._channel.unary_unary(_SERVICE + method)
        message = request.SerializeToString()
        try:
            # Directly before it is sent: a process that was stopped in between finds no time left.
            future = stub.future(message, timeout=self._timeout())
        except CallFailed:
            raise
        except Exception as error:
            raise CallFailed(method, Code.UNAVAILABLE, describe(error)) from error
        await finished(future, self._bell)
        code = future.code()
        if code is not grpc.StatusCode.OK:
            known = Code.__members__.get(code.name, Code.UNKNOWN)
            raise CallFailed(method, known, explained(future.details() or ""))
        try:
            return self._messages.answer(method).FromString(future.result())
        except Exception as error:
            details = f"the answer cannot be read: {describe(error)}"
            raise CallFailed(method, Code.INTERNAL, details) from error

    def _timeout(self) -> float:
        """Seconds that a call may take which is sent now.

        Raises:
            CallFailed: None are left; it was not sent.
        """
        left = min(self._deadline, time_left())
        if left < _LEAST_CALL:
            raise CallFailed("UpdateActionStatus", Code.DEADLINE_EXCEEDED, codes.NO_TIME_LEFT)
        return left

    async def _close(self) -> None:
        if self._streams is not None:
            await self._streams.aclose()


def _channel(
    target: Endpoint, tls: Tls | None, options: tuple[tuple[str, int | str], ...]
) -> grpc.Channel:
    if tls is None and not target.encrypted:
        return grpc.insecure_channel(str(target), options=options)
    if target.encrypted is False:
        raise ConfigError(
            f"run service http://{target} is not encrypted, but TLS is asked for: "
            "write https:// or leave the scheme out"
        )
    tls = tls or Tls()
    if tls.skip_verify:
        raise ConfigError("tls: skip_verify is not for the run service: give its certificate as ca")
    pem = read_pem(tls)
    credentials = grpc.ssl_channel_credentials(pem.roots, pem.key, pem.cert)
    if tls.server_name:
        options += (("grpc.ssl_target_name_override", tls.server_name),)
    return grpc.secure_channel(str(target), credentials, options=options)


def _written(what: str, write: Callable[[], Any]) -> Any:
    """Make a message, and see that it can be sent.

    Raises:
        RunServiceRejected: It cannot, and another try would not help.
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
    """Raise for an answer that does not accept."""
    if not response.ByteSize():
        # Flyte's service names the action. Nothing at all may be anybody's answer.
        raise codes.error(Meaning.TRANSIENT, Code.UNKNOWN, f"{what}: the answer is empty")
    if response.HasField("action_id") and response.action_id.name != request.action_id.name:
        other = response.action_id.name
        raise codes.error(Meaning.TRANSIENT, Code.UNKNOWN, f"{what}: the answer is about {other!r}")
    status = response.status
    meant = codes.meaning(status.code)
    if of_status:
        meant = codes.meaning_of_status(meant, status.code, status.message)
    if meant is not Meaning.ACCEPTED:
        raise codes.error(meant, status.code, f"{what}: {status.message}")


def _check_failure(failure: CallFailed, *, of_status: bool = False) -> None:
    """Raise for a call that ended without an answer, unless its code accepts."""
    if failure.method == STREAM:
        # It ended for all: that says nothing of any one of them.
        raise failure.error(Meaning.TRANSIENT) from None
    meant = codes.meaning_of_call(failure.code, failure.details)
    if of_status:
        meant = codes.meaning_of_status(meant, failure.code, failure.details)
    if meant is not Meaning.ACCEPTED:
        raise failure.error(meant) from None
