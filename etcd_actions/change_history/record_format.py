"""The record format: changes of etcd as a stream of msgpack maps. No I/O.

``docs/record-format.md`` describes it for other tools.
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

# An entry that needs more is no entry: etcd refuses requests above some megabytes.
_MOST_BYTES = 64 * 1024 * 1024
_MOST_FIELDS = 1024
# No entry has a list or an extension; what one declares to hold is reserved at once.
_MOST_ITEMS = 1024
# How every entry begins that this module writes, but for the number of its fields. It is no
# UTF-8, so no value in JSON holds it.
_ENTRY = re.compile(rb"\xa4type(?:\xa3PUT|\xa6DELETE|\xa6SYNCED|\xa3END)")


class Header(NamedTuple):
    """The first map of a record.

    Attributes:
        prefix: What comes before ``<namespace>/<name>`` in the keys.
        namespace: The only namespace recorded; None for all.
        start_revision: Revision of the store where the recording begins.
        history: Whether that was the oldest one which etcd could read, not the newest.
        cluster_id: Of the etcd that was recorded.
        created_at: When the recording began, RFC 3339.
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
    """Makes the bytes of a record.

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
        """The last map, without which a record is cut off."""
        return self._packed({"type": "END", "events": self.puts + self.deletes})

    def _packed(self, fields: Mapping[str, object]) -> bytes:
        packed: bytes = self._pack(fields)
        return packed


class RecordDecoder:
    """Takes a record apart, which comes in pieces of any size.

    Attributes:
        position: Offset behind the last whole map.
    """

    def __init__(self) -> None:
        self.position = 0
        self._unpacker = msgpack.Unpacker(
            raw=False,
            max_buffer_size=_MOST_BYTES,
            max_map_len=_MOST_FIELDS,
            max_array_len=_MOST_ITEMS,
            max_ext_len=_MOST_ITEMS,
        )
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """The whole maps that there are with the next piece.

        Raises:
            DecodeError: There is something else at :attr:`position`.
        """
        try:
            self._unpacker.feed(data)
        except msgpack.BufferFull:
            raise DecodeError(f"larger than {_MOST_BYTES} bytes") from None
        self._rest += data
        used = 0
        base = self.position
        try:
            while True:
                try:
                    entry = self._unpacker.unpack()
                except msgpack.OutOfData:
                    break
                except (msgpack.StackError, RecursionError):
                    raise DecodeError("no record: it is nested too deeply") from None
                except (ValueError, msgpack.UnpackException) as error:
                    raise DecodeError(f"no msgpack: {clipped(str(error), 200)}") from None
                if not isinstance(entry, dict):
                    raise DecodeError(f"a map is wanted, not {type(entry).__name__}")
                yield entry
                used = self._unpacker.tell() - base
                self.position = base + used
        finally:
            del self._rest[:used]

    def finish(self) -> int:
        """The number of bytes that are too few for a map, once nothing more comes.

        Raises:
            DecodeError: There are whole entries among these bytes: it was no cut that left
                them over.
        """
        # Behind the beginning of the entry that the rest itself is.
        if _ENTRY.search(self._rest, 2):
            raise DecodeError("it does not end where the next one begins")
        return len(self._rest)


def checksum(key: bytes, value: bytes | None) -> int:
    """CRC-32 of a key and the value behind it."""
    return zlib.crc32(value or b"", zlib.crc32(key))
