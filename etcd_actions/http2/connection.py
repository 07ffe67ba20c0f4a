"""The client's side of one HTTP/2 connection, without I/O (RFC 9113).

:meth:`ClientConnection.receive` accepts the server's bytes; ``sending`` has those to be written.
After each ``receive`` the streams in ``woken`` have ended or received data.

The memory of a connection is bounded: by the windows of the streams, the size of frames and header
blocks, and the number of replies that wait to be written.
"""

from __future__ import annotations

from typing import Final

from etcd_actions.http2 import frames
from etcd_actions.http2.errors import CallFailed, Code, ErrorCode, ProtocolError, error_name
from etcd_actions.http2.frame_checks import (
    PartialFrame,
    check_connection,
    check_first,
    check_size,
    without_padding,
)
from etcd_actions.http2.headers import NO_TABLE, HeaderBlock, HeaderDecoder
from etcd_actions.http2.send_queue import SendQueue
from etcd_actions.http2.stream import Stream

STREAM_WINDOW: Final = 16 * 1024 * 1024
"""Bytes that the server may send on a stream whose reader does not read."""

_WINDOW_STEP: Final = 16 * 1024 * 1024
"""Bytes after which the connection's window is granted again, all at once."""

_MAX_FRAME_SIZE: Final = 64 * 1024
_LONGEST_DEBUG: Final = 200

_BY_RESET: Final = {
    ErrorCode.REFUSED_STREAM: Code.UNAVAILABLE,
    ErrorCode.CANCEL: Code.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    ErrorCode.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}
"""gRPC's mapping (PROTOCOL-HTTP2.md, "Errors"); all others are INTERNAL."""


class ClientConnection:
    """Frames, streams, settings and flow control of one connection.

    Attributes:
        ready: Whether the server's settings have arrived, so that it speaks HTTP/2.
        draining: Why no stream can be opened any more; None while streams can be opened.
        woken: Streams that have ended or received data; the user of the connection empties it.
        pinged: The payload of the newest response to a ping.
        sending: The frames to be written.
    """

    def __init__(self, *, stream_window: int = STREAM_WINDOW) -> None:
        self.ready = False
        self.draining: str | None = None
        self.woken: list[Stream] = []
        self.pinged: bytes | None = None
        self._failed: ProtocolError | None = None
        self._streams: dict[int, Stream] = {}
        self._most_streams = frames.LAST_STREAM
        self._next_id = 1
        self._decoder = HeaderDecoder()
        self._partial = PartialFrame()
        self._block: HeaderBlock | None = None
        self._received = 0
        self._stream_window = stream_window
        settings = {
            frames.HEADER_TABLE_SIZE: 0,
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: stream_window,
            frames.MAX_FRAME_SIZE: _MAX_FRAME_SIZE,
        }
        self.sending = SendQueue(
            frames.PREFACE,
            frames.settings(settings),
            frames.window_update(0, frames.LARGEST_WINDOW - frames.FIRST_WINDOW),
        )

    @property
    def streams(self) -> int:
        """The number of open streams."""
        return len(self._streams)

    @property
    def can_open(self) -> bool:
        """Whether the server allows one more stream now."""
        return self.draining is None and len(self._streams) < self._most_streams

    @property
    def stream_capacity(self) -> int:
        """How many more streams the server allows now."""
        return max(0, self._most_streams - len(self._streams)) if self.draining is None else 0

    def open(
        self, head: bytes, body: bytes = b"", *, end: bool, largest: int, gathers: bool
    ) -> Stream:
        """Open a stream; only valid while :attr:`can_open`.

        Args:
            head: The header block.
            body: The first data.
            end: Whether no more data follows.
            largest: See :class:`~etcd_actions.http2.stream.Stream`.
            gathers: See there.
        """
        number = self._next_id
        self._next_id = number + 2
        if self._next_id > frames.LAST_STREAM:
            self.draining = "all numbers of streams are used up"
        sending = self.sending
        stream = self._streams[number] = Stream(
            number, sending.queued, sending.stream_window, self._stream_window, largest, gathers
        )
        if number == 1:
            head = NO_TABLE + head
        sending.put_head(number, head, end=end and not body)
        if body:
            sending.send(stream, body, end=end)
        else:
            stream.sent_end = end
        return stream

    def reset(self, stream: Stream, code: ErrorCode = ErrorCode.CANCEL) -> None:
        """End a stream and forget it; its later frames are dropped."""
        if self._streams.pop(stream.id, None) is not None:
            self.sending.put(frames.rst_stream(stream.id, code))
        self.sending.drop(stream)
        stream.ended = True

    def acknowledge(self, stream: Stream, size: int) -> None:
        """The reader consumed bytes of a stream: the server may send as many more."""
        stream.consumed += size
        if stream.consumed >= self._stream_window // 2 and not stream.ended:
            stream.receive_window += stream.consumed
            self.sending.put(frames.window_update(stream.id, stream.consumed))
            stream.consumed = 0

    def ping(self, payload: bytes) -> None:
        """Send a ping; its eight bytes come back in :attr:`pinged`."""
        self.sending.put(frames.frame(frames.PING, 0, 0, payload))

    def receive(self, data: bytes) -> None:
        """Accept bytes, split anywhere.

        Raises:
            ProtocolError: They break the rules of HTTP/2; so does each call after that. Frames
                before the error count.
        """
        if self._failed is not None:
            raise self._failed
        if (joined := self._partial.join(data)) is None:
            return
        data = joined
        try:
            offset = self._read_frames(data)
        except ProtocolError as error:
            self._failed = error
            self.sending.put(frames.goaway(error.code, str(error).encode()[:_LONGEST_DEBUG]))
            raise
        self._partial.keep(data, offset)

    def fail(self, reason: str, *, written: int) -> None:
        """Fail all streams, because the connection broke.

        Args:
            reason: The details of the failures.
            written: How many of the queued bytes may have left this machine. The server received
                nothing of a stream that starts after them.
        """
        self.draining = self.draining or reason
        for stream in list(self._streams.values()):
            self._fail(
                stream, CallFailed(Code.UNAVAILABLE, reason, not_done=stream.offset >= written)
            )
        self.sending.clear()

    def _read_frames(self, data: bytes) -> int:
        """Handle all complete frames; returns the offset of the first incomplete one."""
        offset, end = 0, len(data)
        unpack = frames.HEADER.unpack_from
        while end - offset >= frames.HEADER_LENGTH:
            word, flags, number = unpack(data, offset)
            start = offset + frames.HEADER_LENGTH
            stop = start + (word >> 8)
            kind = word & 0xFF
            if not self.ready:
                check_first(data, kind, flags)
            if stop - start > _MAX_FRAME_SIZE:
                raise ProtocolError(
                    f"a frame of {stop - start} bytes, above {_MAX_FRAME_SIZE}",
                    ErrorCode.FRAME_SIZE_ERROR,
                )
            if stop > end:
                self._partial.needed = stop - offset
                return offset
            number &= frames.LAST_STREAM
            if self._block is not None and kind != frames.CONTINUATION:
                raise ProtocolError("a header block was not continued")
            if kind == frames.DATA:
                self._on_data(data, start, stop, flags, number)
            elif kind == frames.HEADERS:
                self._on_headers(data, start, stop, flags, number)
            else:
                self._on_other(kind, flags, number, data[start:stop])
            offset = stop
        self._partial.needed = frames.HEADER_LENGTH
        return offset

    def _on_data(self, data: bytes, start: int, stop: int, flags: int, number: int) -> None:
        length = stop - start
        self._received += length
        if self._received >= _WINDOW_STEP:
            self.sending.put(frames.window_update(0, self._received))
            self._received = 0
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number, "DATA")
            return
        if flags & frames.PADDED:
            start, stop = without_padding(data, start, stop)
        stream.receive_window -= length
        if stream.receive_window < 0:
            self._break(stream, "more data than the window allows", ErrorCode.FLOW_CONTROL_ERROR)
            return
        if stream.headers is None:
            self._break(stream, "data before the headers", ErrorCode.PROTOCOL_ERROR)
            return
        size = stop - start
        if size:
            stream.chunks.append(data[start:stop])
            stream.size += size
        if flags & frames.END_STREAM:
            self._end(stream)
        elif stream.gathers:
            # gRPC sends five bytes before the message.
            if stream.size > stream.largest + 5:
                self._break(
                    stream,
                    f"an answer of more than {stream.largest} bytes",
                    ErrorCode.CANCEL,
                    Code.RESOURCE_EXHAUSTED,
                )
            else:
                self.acknowledge(stream, length)
        else:
            if size < length:
                self.acknowledge(stream, length - size)
            if size and (not self.woken or self.woken[-1] is not stream):
                self.woken.append(stream)

    def _on_headers(self, data: bytes, start: int, stop: int, flags: int, number: int) -> None:
        if flags & frames.PADDED:
            start, stop = without_padding(data, start, stop)
        if flags & frames.WITH_PRIORITY:
            start += 5
            if start > stop:
                raise ProtocolError("a HEADERS frame is too short", ErrorCode.FRAME_SIZE_ERROR)
        block = data[start:stop]
        if flags & frames.END_HEADERS:
            self._on_block(number, block, end=flags & frames.END_STREAM != 0)
        else:
            self._block = HeaderBlock(number, block, end=flags & frames.END_STREAM != 0)

    def _on_block(self, number: int, data: bytes, *, end: bool) -> None:
        fields = self._decoder.decode(data)
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number, "HEADERS")
            return
        if stream.headers is None:
            if ":status" not in fields:
                self._break(stream, "headers without a status", ErrorCode.PROTOCOL_ERROR)
                return
            if not end and fields[":status"].startswith("1"):
                return
            stream.headers = fields
        elif not end:
            self._break(stream, "headers in the middle of a stream", ErrorCode.PROTOCOL_ERROR)
            return
        if end:
            stream.trailers = fields
            self._end(stream)

    def _on_other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(number, payload)
        elif kind == frames.PING:
            self._on_ping(flags, number, payload)
        elif kind == frames.RST_STREAM:
            self._on_rst_stream(number, payload)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, number, payload)
        elif kind == frames.GOAWAY:
            self._on_goaway(number, payload)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, number, payload)
        elif kind == frames.PUSH_PROMISE:
            raise ProtocolError("PUSH_PROMISE, which the settings forbid")
        elif kind == frames.PRIORITY:
            check_size("PRIORITY", payload, 5)
        # Frames of other kinds are ignored (RFC 9113, section 4.1).

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream != number:
            raise ProtocolError("CONTINUATION without a header block")
        block.add(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(number, b"".join(block.parts), end=block.end)

    def _on_rst_stream(self, number: int, payload: bytes) -> None:
        check_size("RST_STREAM", payload, 4)
        stream = self._streams.get(number)
        if stream is None:
            self._check_known(number, "RST_STREAM")
            return
        code = frames.NUMBER.unpack(payload)[0]
        self._fail(
            stream,
            CallFailed(
                _BY_RESET.get(code, Code.INTERNAL),
                f"the server reset the stream: {error_name(code)}",
                # A server that has sent headers has started the call.
                not_done=code == ErrorCode.REFUSED_STREAM and stream.headers is None,
            ),
        )

    def _on_goaway(self, number: int, payload: bytes) -> None:
        check_connection("GOAWAY", number)
        if len(payload) < 8:
            raise ProtocolError("a GOAWAY frame is too short", ErrorCode.FRAME_SIZE_ERROR)
        last = frames.NUMBER.unpack_from(payload, 0)[0] & frames.LAST_STREAM
        code = frames.NUMBER.unpack_from(payload, 4)[0]
        debug = payload[8 : 8 + _LONGEST_DEBUG].decode(errors="backslashreplace")
        reason = f"the server ends the connection: {error_name(code)}"
        if debug:
            reason += f" ({debug})"
        self.draining = reason
        for stream in [each for each in self._streams.values() if each.id > last]:
            not_done = stream.headers is None
            self._fail(stream, CallFailed(Code.UNAVAILABLE, reason, not_done=not_done))

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        check_connection("PING", number)
        check_size("PING", payload, 8)
        if flags & frames.ACK:
            self.pinged = payload
        else:
            self.sending.reply(frames.frame(frames.PING, frames.ACK, 0, payload))

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        check_connection("SETTINGS", number)
        if flags & frames.ACK:
            check_size("SETTINGS", payload, 0)
            return
        if len(payload) % frames.SETTING.size:
            raise ProtocolError("a SETTINGS frame is truncated", ErrorCode.FRAME_SIZE_ERROR)
        for name, value in frames.SETTING.iter_unpack(payload):
            self._on_setting(name, value)
        self.ready = True
        self.sending.reply(frames.frame(frames.SETTINGS, frames.ACK, 0))
        self.sending.pump()

    def _on_setting(self, name: int, value: int) -> None:
        if name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.LARGEST_WINDOW:
                raise ProtocolError(
                    f"an initial window of {value} bytes", ErrorCode.FLOW_CONTROL_ERROR
                )
            change = value - self.sending.stream_window
            self.sending.stream_window = value
            for stream in self._streams.values():
                # It may become negative (RFC 9113, section 6.9.2).
                stream.send_window += change
                if stream.send_window > frames.LARGEST_WINDOW:
                    raise ProtocolError(
                        "an initial window that makes another one too large",
                        ErrorCode.FLOW_CONTROL_ERROR,
                    )
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.LEAST_MAX_FRAME_SIZE <= value <= frames.LARGEST_MAX_FRAME_SIZE:
                raise ProtocolError(f"a largest frame of {value} bytes")
            self.sending.largest_frame = value
        elif name == frames.MAX_CONCURRENT_STREAMS:
            self._most_streams = value
        elif name == frames.ENABLE_PUSH and value:
            raise ProtocolError("a server that enables pushes")

    def _on_window_update(self, number: int, payload: bytes) -> None:
        check_size("WINDOW_UPDATE", payload, 4)
        increment = frames.NUMBER.unpack(payload)[0] & frames.LARGEST_WINDOW
        if number == 0:
            self.sending.window += increment
            if not increment or self.sending.window > frames.LARGEST_WINDOW:
                raise ProtocolError(
                    f"the window of the connection grew by {increment}",
                    ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR,
                )
        else:
            stream = self._streams.get(number)
            if stream is None:
                self._check_known(number, "WINDOW_UPDATE")
                return
            stream.send_window += increment
            if not increment or stream.send_window > frames.LARGEST_WINDOW:
                self._break(
                    stream,
                    f"the window grew by {increment}",
                    ErrorCode.FLOW_CONTROL_ERROR if increment else ErrorCode.PROTOCOL_ERROR,
                )
                return
        if self.sending.blocked:
            self.sending.pump()

    def _check_known(self, number: int, what: str) -> None:
        """Check that a stream that is not open was opened before."""
        if number % 2 == 0 or number >= self._next_id:
            raise ProtocolError(f"{what} for stream {number}, which was never opened")

    def _end(self, stream: Stream) -> None:
        """End a stream that the server ended in order."""
        del self._streams[stream.id]
        if not stream.sent_end:
            # The server does not need the rest of the request.
            self.sending.drop(stream)
            self.sending.put(frames.rst_stream(stream.id, ErrorCode.CANCEL))
        stream.ended = True
        self.woken.append(stream)

    def _break(
        self, stream: Stream, problem: str, code: ErrorCode, status: Code = Code.INTERNAL
    ) -> None:
        """End a stream on which the server broke a rule."""
        self.sending.put(frames.rst_stream(stream.id, code))
        self._fail(stream, CallFailed(status, f"the server sent {problem}"))

    def _fail(self, stream: Stream, failure: CallFailed) -> None:
        del self._streams[stream.id]
        self.sending.drop(stream)
        stream.failure = failure
        stream.ended = True
        self.woken.append(stream)
