"""The send side of a connection: queued frames, and data that waits for a window."""

from __future__ import annotations

from typing import Final

from etcd_actions.http2 import frames
from etcd_actions.http2.errors import ErrorCode, ProtocolError
from etcd_actions.http2.stream import Stream

_MOST_REPLIES: Final = 1_000
"""Replies to pings and settings that may wait to be written."""


class SendQueue:
    """The frames to be written, and the limits that the server set for them.

    Attributes:
        queued: Bytes that were ever queued.
        window: Bytes of data that the server accepts on the connection now.
        stream_window: Bytes of data that it accepts on a new stream.
        largest_frame: Bytes of a frame that it accepts.
        blocked: Streams whose data waits for a window, by number.
    """

    def __init__(self, *start: bytes) -> None:
        self.window = frames.FIRST_WINDOW
        self.stream_window = frames.FIRST_WINDOW
        self.largest_frame = frames.LEAST_MAX_FRAME_SIZE
        self.blocked: dict[int, Stream] = {}
        self._frames = list(start)
        self.queued = sum(map(len, start))
        self._taken = 0
        self._replies = 0

    @property
    def unwritten(self) -> int:
        """Bytes that :meth:`take` would return."""
        return self.queued - self._taken

    def put(self, frame: bytes) -> None:
        """Queue one or more frames."""
        self._frames.append(frame)
        self.queued += len(frame)

    def reply(self, frame: bytes) -> None:
        """Queue a reply.

        Raises:
            ProtocolError: Too many wait.
        """
        self._replies += 1
        if self._replies > _MOST_REPLIES:
            raise ProtocolError(
                "pings or settings come faster than their answers can be written",
                ErrorCode.ENHANCE_YOUR_CALM,
            )
        self.put(frame)

    def take(self) -> bytes:
        """Remove and return all queued bytes."""
        queued = self._frames
        if not queued:
            return b""
        data = queued[0] if len(queued) == 1 else b"".join(queued)
        queued.clear()
        self._taken = self.queued
        self._replies = 0
        return data

    def clear(self) -> None:
        """Drop the queued frames."""
        self._frames.clear()

    def put_head(self, stream_id: int, head: bytes, *, end: bool) -> None:
        """Queue a header block, in several frames if it is large."""
        flags = frames.END_STREAM * end
        most = self.largest_frame
        if len(head) <= most:
            self.put(frames.frame(frames.HEADERS, flags | frames.END_HEADERS, stream_id, head))
            return
        # No other frame may come between these.
        parts = [head[start : start + most] for start in range(0, len(head), most)]
        block = [frames.frame(frames.HEADERS, flags, stream_id, parts[0])]
        block += [frames.frame(frames.CONTINUATION, 0, stream_id, part) for part in parts[1:-1]]
        block.append(frames.frame(frames.CONTINUATION, frames.END_HEADERS, stream_id, parts[-1]))
        self.put(b"".join(block))

    def send(self, stream: Stream, data: bytes, *, end: bool) -> None:
        """Queue data as far as the windows allow; the rest follows when they grow."""
        if stream.ended or stream.sent_end or stream.unsent_end:
            return
        size = len(data)
        if (
            size <= self.largest_frame
            and size <= self.window
            and size <= stream.send_window
            and not stream.unsent
        ):
            self.window -= size
            stream.send_window -= size
            stream.sent_end = end
            self.put(
                frames.HEADER.pack(size << 8 | frames.DATA, frames.END_STREAM * end, stream.id)
                + data
            )
            return
        if data:
            stream.unsent.append(memoryview(data))
        stream.unsent_end = end
        self.blocked[stream.id] = stream
        self.pump()

    def drop(self, stream: Stream) -> None:
        """Drop the data of a stream that waits."""
        self.blocked.pop(stream.id, None)
        stream.unsent.clear()

    def pump(self) -> None:
        """Queue data that waits, one frame of each stream in turn."""
        progress = True
        while self.blocked and progress:
            progress = False
            for stream in list(self.blocked.values()):
                progress |= self._pump_stream(stream)

    def _pump_stream(self, stream: Stream) -> bool:
        """Queue one frame of a stream; returns whether its window allowed that."""
        if not stream.unsent:
            # Only the end is left.
            del self.blocked[stream.id]
            if stream.unsent_end and not stream.sent_end:
                stream.sent_end = True
                self.put(frames.frame(frames.DATA, frames.END_STREAM, stream.id))
            return True
        data = stream.unsent[0]
        size = min(len(data), self.largest_frame, self.window, stream.send_window)
        if size <= 0:
            return False
        self.window -= size
        stream.send_window -= size
        if size == len(data):
            del stream.unsent[0]
        else:
            stream.unsent[0] = data[size:]
        if not stream.unsent:
            del self.blocked[stream.id]
            stream.sent_end = stream.unsent_end
        flags = frames.END_STREAM * stream.sent_end
        self.put(frames.frame(frames.DATA, flags, stream.id, bytes(data[:size])))
        return True
