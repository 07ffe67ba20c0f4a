"""A server for one connection, by another implementation of HTTP/2: the library h2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack

from etcd_actions.http2 import frames
from etcd_actions.http2.connection import ClientConnection
from etcd_actions.http2.grpc_messages import framed
from etcd_actions.http2.headers import request_head
from etcd_actions.http2.stream import Stream

HEAD = request_head(encrypted=False, authority="etcd", path="/s/m", metadata=())
HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0")]
LARGEST = 64 * 1024 * 1024


def open_call(
    client: ClientConnection, body: bytes = b"", *, largest: int = LARGEST, gathers: bool = True
) -> Stream:
    """A call with one message."""
    return client.open(HEAD, framed(body), end=True, largest=largest, gathers=gathers)


@dataclass
class Request:
    """What the server has of one stream."""

    headers: dict[str, str]
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None


class Peer:
    """The server's side: it keeps what it gets, and answers what it is told to."""

    def __init__(self, settings: dict[int, int] | None = None) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        )
        self.h2.initiate_connection()
        if settings:
            self.h2.update_settings({h2.settings.SettingCodes(k): v for k, v in settings.items()})
        self.requests: dict[int, Request] = {}
        self.goaway: int | None = None
        self.gives_back = True
        self.answered: set[int] = set()
        self.before = b""
        self._answers: dict[int, memoryview] = {}

    def receive(self, data: bytes) -> None:
        """Take in what the client sent."""
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived(stream_id=number, headers=headers):
                    self.requests[number] = Request(
                        {str(name): str(value) for name, value in headers}
                    )
                case h2.events.DataReceived(stream_id=number, data=part, flow_controlled_length=n):
                    self.requests[number].body += part
                    if self.gives_back and n:
                        self.h2.acknowledge_received_data(n, number)
                case h2.events.StreamEnded(stream_id=number):
                    self.requests[number].ended = True
                case h2.events.StreamReset(stream_id=number, error_code=code):
                    self.requests[number].reset = code
                    self._answers.pop(number, None)
                case h2.events.ConnectionTerminated(error_code=code):
                    self.goaway = code
                case _:
                    pass
        self._pump()

    def answer(self, number: int, body: bytes) -> None:
        """Answer a call, as far as the windows allow; the rest follows."""
        self.answered.add(number)
        self.h2.send_headers(number, HEADERS)
        self._answers[number] = memoryview(body)
        self._pump()

    def take(self) -> bytes:
        """What the client is to get."""
        data, self.before = self.before + self.h2.data_to_send(), b""
        return data

    def _pump(self) -> None:
        for number, body in list(self._answers.items()):
            start = 0
            while start < len(body):
                room = min(
                    self.h2.local_flow_control_window(number),
                    self.h2.max_outbound_frame_size,
                    len(body) - start,
                )
                if room <= 0:
                    break
                self.h2.send_data(number, bytes(body[start : start + room]))
                start += room
            if start < len(body):
                self._answers[number] = body[start:]
            else:
                del self._answers[number]
                self.h2.send_headers(number, OK, end_stream=True)


def exchange(client: ClientConnection, peer: Peer, cuts: Iterable[int] = ()) -> None:
    """Carry bytes between both until nobody says anything more, cut as told."""
    sizes = iter(cuts)
    while True:
        sent, answered = client.sending.take(), b""
        for piece in cut(sent, sizes):
            peer.receive(piece)
        answered = peer.take()
        if not sent and not answered:
            return
        for piece in cut(answered, sizes):
            client.receive(piece)


def cut(data: bytes, sizes: Iterable[int]) -> Iterable[bytes]:
    """The bytes in pieces of these sizes; the rest in one."""
    start = 0
    for size in sizes:
        if start >= len(data):
            return
        yield data[start : start + size]
        start += size
    if start < len(data):
        yield data[start:]


def greeted(settings: dict[int, int] | None = None) -> ClientConnection:
    """A connection whose server has sent its settings, and whose first bytes are written."""
    client = ClientConnection()
    client.receive(frames.settings(settings or {}))
    client.sending.take()
    return client


def block(*fields: tuple[str, str]) -> bytes:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    return encoder.encode(list(fields))


ANSWER = block(*HEADERS)
DONE = block(*OK)


def headers(number: int, data: bytes = ANSWER, flags: int = frames.END_HEADERS) -> bytes:
    return frames.frame(frames.HEADERS, flags, number, data)


def trailers(number: int, data: bytes = DONE) -> bytes:
    return headers(number, data, frames.END_HEADERS | frames.END_STREAM)


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return frames.frame(frames.DATA, flags, number, payload)


def whole(number: int, message: bytes) -> bytes:
    return headers(number) + data(number, framed(message)) + trailers(number)


def sent_kinds(written: bytes) -> list[tuple[int, int, int]]:
    """Kind, stream and length of all frames that were written."""
    found, position = [], 0
    while position < len(written):
        word, _, number = frames.HEADER.unpack_from(written, position)
        found.append((word & 0xFF, number, word >> 8))
        position += frames.HEADER_LENGTH + (word >> 8)
    return found
