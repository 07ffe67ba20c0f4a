"""Stored bytes to TaskActions and back.

A codec is a module with the functions of `Codec`. A stored value tells its codec by its
first bytes; a change is written in the codec that the value had.
"""

from __future__ import annotations

from typing import Any, Protocol

from etcd_actions.codecs import json
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import TaskAction

__all__ = ["Codec", "codec_of", "json"]


class Codec(Protocol):
    """One stored form of a TaskAction."""

    @property
    def name(self) -> str:
        """Its name in settings and records."""
        ...

    def decode(self, value: bytes, *, key: bytes = b"", revision: int = 0) -> TaskAction:
        """Decode the typed view.

        Raises:
            DecodeError: It is not a TaskAction; `key` and `revision` are named in it.
        """
        ...

    def summarize(
        self, value: bytes, *, key: bytes = b"", revision: int = 0, create_revision: int = 0
    ) -> Summary:
        """Decode only what decides who is to be told.

        Raises:
            DecodeError: It is not a TaskAction.
        """
        ...

    def decode_tree(self, value: bytes, *, key: bytes = b"", revision: int = 0) -> dict[str, Any]:
        """Decode everything, unknown fields included.

        Raises:
            DecodeError: It cannot be decoded; `key` and `revision` are named in it.
        """
        ...

    def encode_tree(self, tree: dict[str, Any]) -> bytes:
        """Encode what `decode_tree` gave, changed or not.

        Raises:
            TypeError: The tree holds something that the form has no place for.
            ValueError: The same of a value of a right type.
        """
        ...

    def encode(self, action: TaskAction) -> bytes:
        """Encode a new object."""
        ...

    def add_label(
        self, value: bytes, label: str, text: str, *, key: bytes = b"", revision: int = 0
    ) -> bytes:
        """Set a label and change nothing else; `value` itself where it is set already.

        Raises:
            DecodeError: The value cannot be decoded.
        """
        ...


def codec_of(value: bytes) -> Codec:
    """Tell the codec of a stored value by its first bytes.

    What no codec claims is left to ``json``, whose `decode` says what is wrong with it.
    """
    # Another codec's values begin with a magic of four bytes; JSON's begin with a brace.
    return json
