"""The stored form of a cached result; no I/O."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Final

import msgspec

from etcd_actions.errors import DecodeError

FORM: Final = 1


class Entry(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A result, and where it came from.

    Attributes:
        form: Of the stored bytes.
        cache_key: Which call it is the result of, as the SDK tells one call from another.
        org: The organisation of the action that left it.
        project: Its project.
        domain: Its domain.
        run: Its run.
        action: Its name.
        attempt: Which attempt of it.
        output_uri: Where that attempt left the outputs.
        digest: Of the outputs' bytes, see `digest_of`; empty where the task has none.
        outputs: These bytes, where there are few.
        created: When the result was made; what `cache_max_age` counts from.
        kept_until: Until when etcd keeps the entry at least.
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


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def digest_of(outputs: bytes) -> str:
    """What tells one file of outputs from another: ``sha256:`` and hexadecimal digits."""
    return "sha256:" + hashlib.sha256(outputs).hexdigest()


def encode(entry: Entry) -> bytes:
    """The stored bytes."""
    return _encode(entry)


def decode(data: bytes, cache_key: str) -> Entry:
    """Read an entry.

    Raises:
        DecodeError: It is none, one of a later version, or the result of another call.
    """
    try:
        entry = _decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise DecodeError(f"no cached result: {error}") from None
    if entry.form != FORM:
        raise DecodeError(f"a cached result of form {entry.form}, not {FORM}")
    if entry.cache_key != cache_key:
        raise DecodeError("a cached result of another call")
    if entry.created.tzinfo is None or entry.kept_until.tzinfo is None:
        raise DecodeError("a cached result whose times have no zone")
    return entry


class _Source(msgspec.Struct, frozen=True):
    project: str
    domain: str
    run: str


_decode_source = msgspec.json.Decoder(_Source).decode


def source_of(data: bytes) -> tuple[str, str, str]:
    """Project, domain and name of the run that left a result, whichever call it is of.

    Raises:
        DecodeError: It is none.
    """
    try:
        source = _decode_source(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise DecodeError(f"no cached result: {error}") from None
    return source.project, source.domain, source.run
