"""Signed URLs: each has the request that it allows, its expiry, and a signature of both."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import parse_qsl, urlencode

import msgspec
import trio

from etcd_actions.errors import DecodeError, EtcdActionsError
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store
from etcd_actions.storage.stored_form import StoredForm

_SECRET_BYTES: Final = 32
_NAME: Final = b"urls"
# The version of the signed text.
_PURPOSE: Final = "etcd-actions blob 1"
_LONGEST_QUERY: Final = 1024


class BadSignature(EtcdActionsError):
    """The signature is not ours, or the URL was changed."""


class Expired(EtcdActionsError):
    """The URL was valid, and has expired."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """The request that a URL allows.

    Attributes:
        method: ``GET`` or ``PUT``.
        path: The path of the URL.
        expires: When it expires, in seconds since 1970.
        length: The number of bytes to put; None for any.
        md5: The digest of the bytes to put; empty for any.
    """

    method: Literal["GET", "PUT"]
    path: str
    expires: int
    length: int | None = None
    md5: bytes = b""


class _Secret(msgspec.Struct, frozen=True):
    """The stored form."""

    form: int
    secret: bytes


class UrlSigner:
    """Signs URLs with a secret that is in etcd, so that all processes verify each other's.

    The first process that needs the secret creates it. To invalidate all URLs, delete its key and
    restart the processes.

    Args:
        store: Reads and writes the secret.
        keys: The keys of the deployment.
        clock: Seconds of the wall clock.
    """

    def __init__(
        self, store: Store, keys: Keyspace, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._key = keys.signing + _NAME
        self._clock = clock
        self._secret: bytes | None = None
        self._loading = trio.Lock()

    def expiry(self, seconds: float) -> int:
        """The time of expiry after a number of seconds."""
        return int(self._clock() + seconds)

    async def query(self, grant: Grant) -> str:
        """The query of a URL that allows a request.

        Raises:
            EtcdError: The secret could not be read, or created.
            DecodeError: The stored value is not a secret.
        """
        fields = {"expires": str(grant.expires)}
        if grant.length is not None:
            fields["length"] = str(grant.length)
        if grant.md5:
            fields["md5"] = grant.md5.hex()
        fields["signature"] = _sign(await self._load(), grant)
        return urlencode(fields)

    async def check(self, method: Literal["GET", "PUT"], path: str, query: str) -> Grant:
        """Check a request to a URL.

        Args:
            method: The method of the request.
            path: The path, not percent-encoded.
            query: The URL's query.

        Raises:
            BadSignature: The URL does not allow the request.
            Expired: The URL has expired.
            EtcdError: The secret could not be read.
            DecodeError: The stored value is not a secret.
        """
        grant, signature = _read(method, path, query)
        if not hmac.compare_digest(_sign(await self._load(), grant), signature):
            raise BadSignature("the signature is not that of this URL: use the URL unchanged")
        if grant.expires <= self._clock():
            raise Expired("the URL has expired: request another one, or a longer time")
        return grant

    async def _load(self) -> bytes:
        async with self._loading:
            if self._secret is None:
                kv = await self._store.get_or_create(self._key, _random_secret)
                stored = _stored.decode(kv.value, key=kv.key, revision=kv.mod_revision)
                if len(stored.secret) < _SECRET_BYTES:
                    raise DecodeError(
                        f"a secret with {len(stored.secret)} bytes",
                        key=kv.key,
                        revision=kv.mod_revision,
                    )
                self._secret = stored.secret
        return self._secret


_stored: Final = StoredForm(_Secret, "secret of signatures")


def _random_secret() -> bytes:
    return msgspec.json.encode(_Secret(1, secrets.token_bytes(_SECRET_BYTES)))


def _sign(secret: bytes, grant: Grant) -> str:
    text = msgspec.json.encode(
        [_PURPOSE, grant.method, grant.path, grant.expires, grant.length, grant.md5.hex()]
    )
    digest = hmac.digest(secret, text, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _read(method: Literal["GET", "PUT"], path: str, query: str) -> tuple[Grant, str]:
    if len(query) > _LONGEST_QUERY:
        raise BadSignature("the query is too long for a signed URL: use the URL unchanged")
    try:
        fields = _fields(query)
        grant = Grant(
            method=method,
            path=path,
            expires=_number(fields["expires"]),
            length=_number(fields["length"]) if "length" in fields else None,
            md5=bytes.fromhex(fields.get("md5", "")),
        )
    except (ValueError, KeyError):
        raise BadSignature("the URL has no usable signature: use the URL unchanged") from None
    return grant, fields["signature"]


def _fields(query: str) -> dict[str, str]:
    pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True, max_num_fields=8)
    fields = dict(pairs)
    if len(fields) != len(pairs) or not fields.keys() <= _FIELDS:
        raise ValueError("other fields than a signed URL has")
    if not fields["signature"].isascii():
        raise ValueError("a signature is ASCII")
    return fields


_FIELDS: Final = frozenset({"expires", "length", "md5", "signature"})


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise ValueError
    return int(text)
