"""Flyte's run service over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import structlog
import trio

from etcd_actions.errors import ConfigError, DecodeError, RunServiceUnavailable
from etcd_actions.etcd.connection import Tls
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.tls import read_pem
from etcd_actions.grpc_bridge import Bell, finished
from etcd_actions.model import ActionUpdate, Phase, TaskAction
from etcd_actions.run_service import codes
from etcd_actions.run_service.codes import Code, Meaning
from etcd_actions.run_service.status_stream import StatusStream, StreamBroken

_SERVICE = "/flyteidl2.workflow.InternalRunService/"
_MARGIN = 0.5
"""Seconds after its deadline in which a call may still be applied."""

_log = structlog.get_logger(__name__)


@asynccontextmanager
async def open_run_service(
    endpoint: Endpoint,
    *,
    tls: Tls | None = None,
    deadline: float = 10.0,
    concurrency: int = 128,
    keepalive_time: float = 10.0,
    keepalive_timeout: float = 3.0,
) -> AsyncIterator[GrpcRunService]:
    """Connect to Flyte's ``InternalRunService``. It need not be there yet.

    Args:
        endpoint: Where it listens.
        tls: Files for TLS, which an ``https`` endpoint uses in any case.
        deadline: Seconds that one call may take.
        concurrency: How many calls may be under way at once.
        keepalive_time: Seconds of silence after which the connection is asked for life.
        keepalive_timeout: Seconds that the answer to that may take.

    Raises:
        ConfigError: ``flyteidl2`` is not installed, or a file of ``tls`` cannot be used.
    """
    try:
        from etcd_actions.run_service import messages  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"Flyte's messages are not installed ({error}): pip install etcd-actions[flyte]"
        ) from error
    options: tuple[tuple[str, int | str], ...] = (
        ("grpc.keepalive_time_ms", round(max(10.0, keepalive_time) * 1000)),
        ("grpc.keepalive_timeout_ms", round(keepalive_timeout * 1000)),
        ("grpc.http2.ping_timeout_ms", round(keepalive_timeout * 1000)),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_http_proxy", 0),
    )
    if tls is None and not endpoint.encrypted:
        channel = grpc.insecure_channel(str(endpoint), options=options)
    else:
        pem = read_pem(tls or Tls())
        credentials = grpc.ssl_channel_credentials(pem.roots, pem.key, pem.cert)
        if tls is not None and tls.server_name:
            options += (("grpc.ssl_target_name_override", tls.server_name),)
        channel = grpc.secure_channel(str(endpoint), credentials, options=options)
    service = GrpcRunService(channel, messages, deadline=deadline, concurrency=concurrency)
    try:
        yield service
    finally:
        service._close()
        channel.close()


class GrpcRunService:
    """Implements :class:`~etcd_actions.run_service.RunService`.

    Status updates go over one stream where the server has it, else by a call each. All calls
    raise :class:`~etcd_actions.errors.RunServiceUnavailable` for what may pass, and
    :class:`~etcd_actions.errors.RunServiceRejected` for what will not.
    """

    def __init__(
        self, channel: grpc.Channel, messages: Any, *, deadline: float, concurrency: int
    ) -> None:
        self._channel = channel
        self._messages = messages
        self._deadline = deadline
        self._limit = trio.CapacityLimiter(concurrency)
        self._bell = Bell()
        self._stubs: dict[str, Any] = {}
        self._stream: StatusStream | None = None
        self._has_stream = True
        self._may_land_until: dict[bytes, float] = {}

    def wants(self, phase: Phase, deleted: bool) -> bool:
        """Every state, and every deletion."""
        return True

    async def record_action(self, update: ActionUpdate, action: TaskAction | None) -> None:
        """Make the action known. Cancelled, it may have been."""
        try:
            request = self._messages.record_action(update, action)
        except DecodeError as error:
            # What can be read of it is told: its status must not wait for it.
            _log.error("action_not_described", action=update.name, reason=str(error))
            request = self._messages.record_action(update, None)
        async with self._limit:
            response = await self._call("RecordAction", request)
        _check(response.status, f"RecordAction of {update.name}")

    async def update_action_status(self, update: ActionUpdate) -> None:
        """Tell a state of the action. Cancelled, it may have been told.

        An earlier call of unknown outcome could land behind an ending, and revive the action:
        the run service lets FAILED go back. So until that can no longer be, an ending is told
        once more.
        """
        request = self._messages.update_action_status(update)
        while True:
            began = trio.current_time()
            until = self._may_land_until.get(update.key, began)
            async with self._limit:
                await self._update(update, request)
            if began >= until:
                self._may_land_until.pop(update.key, None)
                return
            if not update.phase.is_terminal:
                return
            await trio.sleep_until(until)

    async def _update(self, update: ActionUpdate, request: Any) -> None:
        began = trio.current_time()
        landed = False
        try:
            response = await self._ask(request)
            landed = True
        finally:
            if not landed:
                # Cancelled or cut off: the server may apply it up to its deadline.
                self._may_land_until[update.key] = began + self._deadline + _MARGIN
        _check(response.status, f"UpdateActionStatus of {update.name}")

    async def _ask(self, request: Any) -> Any:
        if self._has_stream:
            try:
                return await self._ask_on_stream(request)
            except StreamBroken as broken:
                if broken.code is not grpc.StatusCode.UNIMPLEMENTED:
                    raise RunServiceUnavailable(
                        f"UpdateActionStatusStream: {broken.code.name}: {broken.details}"
                    ) from None
                if self._has_stream:
                    self._has_stream = False
                    _log.info("run_service_has_no_stream")
        return await self._call("UpdateActionStatus", request)

    async def _ask_on_stream(self, request: Any) -> Any:
        if self._stream is None or self._stream.broken:
            self._stream = StatusStream(self._channel, self._bell)
        stream = self._stream
        with trio.move_on_after(self._deadline):
            return await stream.ask(request)
        # Answers come in order: those behind it would wait as long.
        stream.close()
        raise RunServiceUnavailable(f"UpdateActionStatusStream: no answer in {self._deadline:g} s")

    async def _call(self, method: str, request: Any) -> Any:
        stub = self._stubs.get(method)
        if stub is None:
            from flyteidl2.workflow import internal_run_service_pb2 as pb  # noqa: PLC0415

            answer: Callable[[bytes], Any] = getattr(pb, f"{method}Response").FromString
            stub = self._stubs[method] = self._channel.unary_unary(
                _SERVICE + method,
                request_serializer=_serialize,
                response_deserializer=answer,
            )
        future = stub.future(request, timeout=self._deadline)
        await finished(future, self._bell)
        code = future.code()
        if code is grpc.StatusCode.OK:
            return future.result()
        number = Code[code.name]
        raise codes.error(
            codes.meaning_of_call(number), number, f"{method}: {future.details() or ''}"
        )

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


def _check(status: Any, what: str) -> None:
    """Raise for an answer that does not accept."""
    meant = codes.meaning(status.code)
    if meant is not Meaning.ACCEPTED:
        raise codes.error(meant, status.code, f"{what}: {status.message}")
