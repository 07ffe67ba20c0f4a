"""A recorded history: one change a line, as JSON. No I/O."""

from __future__ import annotations

from typing import Literal

import msgspec

from etcd_actions.codecs import codec_of
from etcd_actions.errors import DecodeError, InputError


class HistoryEvent(msgspec.Struct, frozen=True, gc=False):
    """One change to make; ``value`` is None for a delete."""

    key: bytes
    value: bytes | None


class _Line(msgspec.Struct, frozen=True, gc=False):
    """What a line must hold; other fields are passed over."""

    type: Literal["PUT", "DELETE"]
    key: str
    value: bytes | None = None


class HistoryReader:
    """Makes events of lines, under another prefix and namespace if asked to.

    Args:
        source: What errors call the input.
        prefix: Where the keys go: their last two parts, namespace and name, follow it.
        namespace: Replaces theirs, in the key and in the object; None leaves it.
    """

    def __init__(self, source: str, prefix: bytes, namespace: str | None = None) -> None:
        self.source = source
        self._prefix = prefix
        self._namespace = namespace
        self._decoder = msgspec.json.Decoder(_Line)
        self.lines = 0

    def read(self, line: bytes) -> HistoryEvent | None:
        """The event of the next line, None of an empty one.

        Raises:
            InputError: It is malformed; the message has the line's number and the field.
        """
        self.lines += 1
        if not line.strip():
            return None
        try:
            decoded = self._decoder.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._malformed(str(error)) from None
        namespace, _, name = decoded.key.rpartition("/")
        namespace = namespace.rpartition("/")[2]
        if not namespace or not name:
            raise self._malformed(
                f"{decoded.key!r} does not end in <namespace>/<name> - at `$.key`"
            )
        value = decoded.value
        if decoded.type == "DELETE":
            value = None
        elif not value:
            raise self._malformed("a PUT needs a value - at `$.value`")
        if self._namespace is not None and self._namespace != namespace:
            namespace = self._namespace
            value = None if value is None else _moved(value, namespace)
        return HistoryEvent(self._prefix + f"{namespace}/{name}".encode(), value)

    def _malformed(self, reason: str) -> InputError:
        return InputError(
            f"{self.source}:{self.lines}: {reason}; this line and those after it are not written"
        )


def _moved(value: bytes, namespace: str) -> bytes:
    """The object in another namespace; what is no object stays as it is."""
    codec = codec_of(value)
    try:
        tree = codec.decode_tree(value)
    except DecodeError:
        return value
    metadata = tree.get("metadata")
    if not isinstance(metadata, dict):
        return value
    metadata["namespace"] = namespace
    return codec.encode_tree(tree)
