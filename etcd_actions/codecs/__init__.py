"""Stored bytes to TaskActions and back.

A codec is a module with the functions of `Codec`. The first bytes of a stored value
name its codec; a change is written in the codec that the value had.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from etcd_actions.codecs import json, magic, msgpack
from etcd_actions.codecs.finalizers import NO_TEXTS, Released
from etcd_actions.codecs.magic import ENCRYPTED_AT_REST
from etcd_actions.errors import ConfigError
from etcd_actions.model.summary import Summary
from etcd_actions.model.taskaction import ActionObject

__all__ = [
    "CODEC_NAMES",
    "ENCRYPTED_AT_REST",
    "NO_TEXTS",
    "Codec",
    "Released",
    "codec_named",
    "codec_of",
    "json",
    "msgpack",
]


class Codec(Protocol):
    """One stored form of a TaskAction."""

    @property
    def name(self) -> str:
        """Its name in settings and records."""

    def decode(self, value: bytes, *, key: bytes = b"", revision: int = 0) -> ActionObject:
        """Decode the typed view.

        Raises:
            DecodeError: It is not a TaskAction; `key` and `revision` are named in it.
        """

    def summarize(
        self, value: bytes, *, key: bytes = b"", revision: int = 0, create_revision: int = 0
    ) -> Summary:
        """Decode only the facts that decide which receivers get the state.

        Raises:
            DecodeError: It is not a TaskAction.
        """

    def decode_tree(self, value: bytes, *, key: bytes = b"", revision: int = 0) -> dict[str, Any]:
        """Decode everything, unknown fields included.

        Raises:
            DecodeError: It cannot be decoded; `key` and `revision` are named in it.
        """

    def encode_tree(self, tree: dict[str, Any], *, unchanged: Iterable[object] = ()) -> bytes:
        """Encode a tree of `decode_tree`, changed or not.

        Args:
            tree: The object.
            unchanged: Parts that are as `decode_tree` returned them; they are not checked again.

        Raises:
            TypeError: A value has a type that JSON lacks.
            ValueError: A number is not finite, a string is not Unicode, it is nested too deeply,
                or too large to be decoded again.
        """

    def encode(self, action: ActionObject) -> bytes:
        """Encode a new object."""

    def release(
        self,
        value: bytes,
        label: str,
        text: str,
        finalizer: str | None,
        *,
        annotations: Mapping[str, str] = NO_TEXTS,
        key: bytes = b"",
        revision: int = 0,
    ) -> Released:
        """Set a label and annotations, remove a finalizer, and change nothing else.

        An API server removes an empty list of finalizers; so does this.

        Args:
            value: The stored bytes.
            label: The label's name.
            text: The label's new value.
            finalizer: The finalizer to remove, if the object has it; None for none.
            annotations: The new values of some annotations.
            key: The etcd key, for the error.
            revision: The value's ``mod_revision``, for the error.

        Raises:
            DecodeError: The value cannot be decoded.
        """


CODEC_NAMES: Final = ("json", "protobuf", "msgpack")
"""The choices of a setting; the first is Kubernetes' own."""


def codec_of(value: bytes) -> Codec:
    """The codec of a stored value, by its first bytes.

    A value of no known form gets ``json``, whose `decode` raises the error with the reason. A
    value of another version of a form gets that form's codec, whose error names the version.
    """
    head = value[:3]
    if head == _PROTOBUF:
        return _protobuf()
    return msgpack if head == _MSGPACK else json


def codec_named(name: str) -> Codec:
    """The codec with a name in `CODEC_NAMES`, to encode new objects.

    Raises:
        ConfigError: There is none of that name; the message has the choices.
    """
    if name == "protobuf":
        return _protobuf()
    if name == "msgpack":
        return msgpack
    if name == "json":
        return json
    raise ConfigError(f"{name!r} is not a valid codec: choose one of {', '.join(CODEC_NAMES)}")


_PROTOBUF: Final = magic.PROTOBUF[:3]
_MSGPACK: Final = magic.MSGPACK[:3]


@functools.cache
def _protobuf() -> Codec:
    """Imported on first use: a process with JSON only needs no protobuf."""
    from etcd_actions.codecs import protobuf  # noqa: PLC0415

    return protobuf
