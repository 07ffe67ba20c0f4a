"""The record format: changes of etcd as a stream of msgpack maps. No I/O.

``docs/record-format.md`` is its specification.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgpack

from etcd_actions._internal.quoting import clipped
from etcd_actions.change_history.synced import SyncedRow
from etcd_actions.errors import DecodeError
from etcd_actions.watch import Change

FORMAT: Final = "etcd-actions-record"
VERSION: Final = 1

# A limit above every entry: etcd rejects requests above some megabytes.
_MOST_BYTES = 64 * 1024 * 1024
_MOST_FIELDS = 1024
# Entries have no list and no extension: msgpack would allocate their declared size at once.
_MOST_ITEMS = 1024
# The beginning of every entry, after the number of its fields. It is not UTF-8, so no value in
# JSON contains it.
_ENTRY = re.compile(rb"\xa4type(?:\xa3PUT|\xa6DELETE|\xa6SYNCED|\xa3END)")


class Header(NamedTuple):
    """The first map of a record.

    Attributes:
        prefix: The part of keys before ``<namespace>/<name>``.
        namespace: The only namespace in the record; None for all.
        start_revision: Revision of the store at the start.
        history: Whether ``start_revision`` was the oldest readable one, and not the newest.
        cluster_id: The id of the etcd cluster.
        created_at: The time of the start, RFC 3339.
        writer: Name and version of the program.
    """

    prefix: bytes
    namespace: str | None
    start_revision: int
    history: bool
    cluster_id: int
    created_at: str
    writer: str


class RecordWriter:
    """Encodes a record.

    Attributes:
        puts: Number of puts among the entries.
        deletes: Number of deletes among them.
        revision: The highest revision among them.
    """

    def __init__(self) -> None:
        self.puts = 0
        self.deletes = 0
        self.revision = 0
        self._pack = msgpack.Packer(use_bin_type=True).pack

    def header(self, header: Header) -> bytes:
        """The first map."""
        return self._packed({"format": FORMAT, "version": VERSION, **header._asdict()})

    def entry(self, item: Change | SyncedRow) -> bytes:
        """The map of a change, or of the end of the first list."""
        self.revision = max(
            self.revision, item.revision if isinstance(item, SyncedRow) else item.mod_revision
        )
        if isinstance(item, SyncedRow):
            return self._packed({"type": "SYNCED", "revision": item.revision})
        value = None if item.is_delete else item.value or b""
        if value is None:
            self.deletes += 1
        else:
            self.puts += 1
        return self._packed(
            {
                "type": "DELETE" if value is None else "PUT",
                "key": item.key,
                "value": value,
                "mod_revision": item.mod_revision,
                "create_revision": item.create_revision,
                "version": item.version,
                "lease": item.kv.lease,
                "listed": item.listed,
                "synthesised": item.synthesised,
                "crc32": checksum(item.key, value),
            }
        )

    def end(self) -> bytes:
        """The last map; a record without it is truncated."""
        return self._packed({"type": "END", "events": self.puts + self.deletes})

    def _packed(self, fields: Mapping[str, object]) -> bytes:
        packed: bytes = self._pack(fields)
        return packed


class RecordDecoder:
    """Decodes a record that comes in pieces of any size.

    Attributes:
        offset: The offset after the last complete map.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._unpacker = msgpack.Unpacker(
            raw=False,
            max_buffer_size=_MOST_BYTES,
            max_map_len=_MOST_FIELDS,
            max_array_len=_MOST_ITEMS,
            max_ext_len=_MOST_ITEMS,
        )
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The maps that the next piece completes.

        Raises:
            DecodeError: There is no map at :attr:`offset`.
        """
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            raise DecodeError(f"larger than {_MOST_BYTES} bytes") from None
        self._rest += data
        used = 0
        base = self.offset
        try:
            while True:
                try:
                    entry = self._unpacker.unpack()
                except msgpack.OutOfData:
                    break
                except (msgpack.StackError, RecursionError):
                    raise DecodeError("not a record: it is nested too deeply") from None
                except (ValueError, msgpack.UnpackException) as error:
                    raise DecodeError(f"not msgpack: {clipped(str(error), 200)}") from None
                if not isinstance(entry, dict):
                    raise DecodeError(f"not a map, but {type(entry).__name__}")
                yield entry
                used = self._unpacker.tell() - base
                self.offset = base + used
        finally:
            del self._rest[:used]

    def finish(self) -> int:
        """The number of bytes after the last complete map, at the end of the input.

        Raises:
            DecodeError: They contain the beginning of another entry: the record is damaged, not
                truncated.
        """
        # After the beginning of the truncated entry itself.
        if _ENTRY.search(self._rest, 2):
            raise DecodeError("it does not end where the next one begins")
        return len(self._rest)


def checksum(key: bytes, value: bytes | None) -> int:
    """CRC-32 of a key and its value."""
    return zlib.crc32(value or b"", zlib.crc32(key))
