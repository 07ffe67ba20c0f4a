"""The stored form of a cached result; no I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from etcd_actions.errors import DecodeError
from etcd_actions.storage.stored_form import StoredForm

FORM: Final = 1


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A result, and the action that produced it.

    Attributes:
        cache_key: The SDK's identity of the call.
        output_uri: The directory of the outputs of the attempt.
        digest: The digest of the outputs, see `digest_of`; empty if the task has none.
        outputs: The outputs' bytes, if they are few.
        created: When the result was produced; `cache_max_age` counts from it.
        kept_until: The earliest time at which etcd deletes the entry.
    """

    form: int = FORM
    cache_key: str
    org: str = ""
    project: str
    domain: str
    run: str
    action: str
    attempt: int
    output_uri: str = ""
    digest: str = ""
    outputs: bytes | None = None
    created: datetime
    kept_until: datetime


encode: Final[Callable[[Entry], bytes]] = msgspec.json.Encoder().encode
"""Returns the stored bytes."""

_stored: Final = StoredForm(Entry, "cached result", ("created", "kept_until"))


def digest_of(outputs: bytes) -> str:
    """The digest of a file of outputs: ``sha256:`` and hexadecimal digits."""
    return "sha256:" + hashlib.sha256(outputs).hexdigest()


def decode(data: bytes, cache_key: str) -> Entry:
    """Decode an entry.

    Raises:
        DecodeError: It is none, one of a later version, or the result of another call.
    """
    entry = _stored.decode(data)
    if entry.cache_key != cache_key:
        raise DecodeError("a cached result of another call")
    return entry


class _Source(msgspec.Struct, frozen=True):
    project: str
    domain: str
    run: str


_decode_source = msgspec.json.Decoder(_Source).decode


def source_of(data: bytes) -> tuple[str, str, str]:
    """Project, domain and name of the run that produced a result; raises DecodeError."""
    try:
        source = _decode_source(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise DecodeError(f"no cached result: {error}") from None
    return source.project, source.domain, source.run
