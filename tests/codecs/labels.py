"""A change of one label, as the mark of a recorded end is."""

from __future__ import annotations

from etcd_actions.codecs import Codec


def add_label(
    codec: Codec, value: bytes, label: str, text: str, *, key: bytes = b"", revision: int = 0
) -> bytes:
    """The value with a label; itself if it has that label already."""
    return codec.release(value, label, text, None, key=key, revision=revision).value
