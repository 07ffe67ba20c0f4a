"""Parses recorded histories: lines of JSON, or a record in msgpack. No I/O."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

from etcd_actions._internal.named_files import size_text
from etcd_actions._internal.quoting import clipped, quoted
from etcd_actions.change_history.record_format import FORMAT, VERSION, RecordDecoder, checksum
from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, InputError

# etcd accepts requests of some megabytes; with a margin for base64.
_MOST_LINE_BYTES = 64 * 1024 * 1024


class HistoryEvent(msgspec.Struct, frozen=True, gc=False):
    """A change to write; ``value`` is None for a delete."""

    key: bytes
    value: bytes | None


class HistoryStep(NamedTuple):
    """A change to write, and the offset of its end in the input."""

    offset: int
    event: HistoryEvent


class Destination(NamedTuple):
    """The keys to which the changes are written.

    Attributes:
        prefix: The part of keys before ``<namespace>/<name>``.
        namespace: Replaces the namespace in the key and the object; None to keep it.
    """

    prefix: bytes
    namespace: str | None = None


class HistoryReader(Protocol):
    """Parses an input that comes in pieces.

    Both methods raise :class:`InputError` for a malformed input, with its line or offset.
    """

    def feed(self, data: bytes, /) -> Iterator[HistoryStep]:
        """The changes that the next piece completes."""

    def finish(self) -> Iterator[HistoryStep]:
        """The changes that the end of the input completes."""

    @property
    def warning(self) -> str:
        """After the end of the input: the part that is missing; empty if it is complete."""


def reader_of(source: str, beginning: bytes, destination: Destination) -> HistoryReader:
    """The reader of an input, chosen by its first bytes; ``source`` is its name in errors.

    Raises:
        InputError: It is neither UTF-8 nor a record.
    """
    # A record begins with a map; no text begins with these bytes.
    if beginning.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{source}:1: it is UTF-16: save it as UTF-8")
    first = beginning[:1]
    if first and (0x80 <= first[0] <= 0x8F or first[0] in (0xDE, 0xDF)):
        return RecordReader(source, destination)
    return LineReader(source, destination)


class _Line(msgspec.Struct, frozen=True, gc=False):
    """The fields of a line; others are ignored."""

    type: Literal["PUT", "DELETE"]
    key: str
    value: bytes | None = None


class LineReader:
    """Reads one JSON object from each line, and moves its key below the destination's prefix."""

    def __init__(self, source: str, destination: Destination) -> None:
        self._source = source
        self._destination = destination
        self._decoder = msgspec.json.Decoder(_Line)
        self._lines = 0
        self._offset = 0
        # The parts of an incomplete line.
        self._rest: list[bytes] = []
        self._rest_size = 0

    @property
    def warning(self) -> str:
        """Empty: a missing line cannot be detected."""
        return ""

    def feed(self, data: bytes) -> Iterator[HistoryStep]:
        """See `HistoryReader`."""
        *lines, rest = data.split(b"\n")
        for line in lines:
            complete = self._complete_line(line)
            self._offset += len(complete) + 1
            yield from self._read(complete)
        self._rest.append(rest)
        self._rest_size += len(rest)
        if self._rest_size > _MOST_LINE_BYTES:
            self._lines += 1
            raise self._malformed(f"the line has more than {size_text(_MOST_LINE_BYTES)}")

    def finish(self) -> Iterator[HistoryStep]:
        """See `HistoryReader`; the input may lack the last newline."""
        line = self._complete_line(b"")
        self._offset += len(line)
        yield from self._read(line)

    def _complete_line(self, end: bytes) -> bytes:
        line = b"".join((*self._rest, end))
        self._rest, self._rest_size = [], 0
        return line

    def _read(self, line: bytes) -> Iterator[HistoryStep]:
        self._lines += 1
        if self._lines == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            return
        try:
            decoded = self._decoder.decode(line)
        except RecursionError:
            raise self._malformed("it is nested too deeply") from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise self._malformed(str(error)) from None
        namespace, _, name = decoded.key.rpartition("/")
        namespace = namespace.rpartition("/")[2]
        if not namespace or not name:
            raise self._malformed(
                f"{quoted(decoded.key)} does not end in <namespace>/<name> - at `$.key`"
            )
        value = decoded.value
        if decoded.type == "DELETE":
            value = None
        elif not value:
            raise self._malformed("a PUT needs a value - at `$.value`")
        tail = f"{namespace}/{name}".encode()
        try:
            event = _event(self._destination, tail, value)
        except DecodeError as error:
            raise self._malformed(f"{error.reason} - at `$.value`") from None
        yield HistoryStep(self._offset, event)

    def _malformed(self, reason: str) -> InputError:
        return InputError(
            f"{self._source}:{self._lines}: {clipped(reason, 300)}; "
            "this line and those after it are not written"
        )


class RecordReader:
    """Reads a record, and moves its keys below the destination's prefix.

    All puts and deletes are changes to write, also the listed and synthesised ones: without them
    later states would be wrong.
    """

    def __init__(self, source: str, destination: Destination) -> None:
        self._source = source
        self._destination = destination
        self._decoder = RecordDecoder()
        self._prefix: bytes | None = None
        self._events = 0
        self._ended = False
        self._left_over = 0

    @property
    def warning(self) -> str:
        """Where the record is truncated; empty if it is complete."""
        if self._left_over:
            return (
                f"{self._source}: truncated in the entry at offset {self._decoder.offset}, "
                "which is not written: its recorder was ended or had no space"
            )
        if not self._ended:
            return f"{self._source}: truncated, or not finished: it has no END"
        return ""

    def feed(self, data: bytes) -> Iterator[HistoryStep]:
        """See `HistoryReader`."""
        try:
            for entry in self._decoder.feed(data):
                event = self._read(entry)
                if event is not None:
                    self._events += 1
                    yield HistoryStep(self._decoder.offset, event)
        except DecodeError as error:
            raise self._malformed(error.reason) from None

    def finish(self) -> Iterator[HistoryStep]:
        """See `HistoryReader`; the rest is not a complete entry."""
        try:
            self._left_over = self._decoder.finish()
        except DecodeError as error:
            raise self._malformed(error.reason) from None
        if self._prefix is None:
            raise self._malformed("there is no header")
        return iter(())

    def _read(self, entry: dict[str, Any]) -> HistoryEvent | None:
        if self._prefix is None:
            self._prefix = _prefix(entry)
            return None
        kind = entry.get("type")
        if self._ended:
            raise DecodeError("there is an entry after the END")
        if kind == "SYNCED":
            return None
        if kind == "END":
            if entry.get("events") != self._events:
                raise DecodeError(
                    f"END counts {quoted(entry.get('events'))} events, but there are {self._events}"
                )
            self._ended = True
            return None
        if kind not in ("PUT", "DELETE"):
            raise DecodeError(f"an unknown entry: its type is {quoted(kind)}")
        key, value = entry.get("key"), entry.get("value")
        if not isinstance(key, bytes) or not key.startswith(self._prefix):
            raise DecodeError(f"key: {quoted(key)} is not below the header's prefix")
        if kind == "DELETE":
            value = None
        elif not isinstance(value, bytes):
            raise DecodeError("value: a PUT needs bytes")
        if entry.get("crc32", checksum(key, value)) != checksum(key, value):
            raise DecodeError("key and value are not those that were recorded (crc32)")
        tail = key[len(self._prefix) :]
        if self._destination.namespace is not None and b"/" not in tail:
            raise DecodeError(f"key: {quoted(key)} has no namespace to replace")
        return _event(self._destination, tail, value)

    def _malformed(self, reason: str) -> InputError:
        return InputError(
            f"{self._source}: offset {self._decoder.offset}: {clipped(reason, 300)}; "
            "this entry and those after it are not written"
        )


def _prefix(header: dict[str, Any]) -> bytes:
    """The prefix in a header.

    Raises:
        DecodeError: It is not the header of a record that this version can read.
    """
    if header.get("format") != FORMAT:
        raise DecodeError(
            f"not a record: its format is {quoted(header.get('format'))}, not {FORMAT!r}"
        )
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise DecodeError(f"not a record: its version is {quoted(version)}, not {VERSION}")
    if version != VERSION:
        raise DecodeError(
            f"a record of version {version}: this program reads {VERSION}: use a later etcd-actions"
        )
    prefix = header.get("prefix")
    if not isinstance(prefix, bytes):
        raise DecodeError("the header has no prefix")
    return prefix


def _event(destination: Destination, tail: bytes, value: bytes | None) -> HistoryEvent:
    """The change to ``<namespace>/<name>``, below the destination."""
    namespace, slash, name = tail.partition(b"/")
    new = destination.namespace
    if new is not None and new.encode() != namespace:
        tail = new.encode() + slash + name
        value = None if value is None else _moved(value, new)
    return HistoryEvent(destination.prefix + tail, value)


def _moved(value: bytes, namespace: str) -> bytes:
    """The object in another namespace; a value that is not an object stays unchanged.

    Raises:
        DecodeError: The object cannot be encoded with that namespace.
    """
    codec = codec_of(value)
    try:
        tree = codec.decode_tree(value)
    except DecodeError:
        return value
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict):
        return value
    metadata["namespace"] = namespace
    try:
        return codec.encode_tree(tree)
    except (TypeError, ValueError, RecursionError) as error:
        raise DecodeError(f"it cannot be put into namespace {namespace}: {error}") from None
