"""URLs that say themselves what they allow, and until when."""

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

from etcd_actions.errors import DecodeError, EtcdActionsError, Unavailable
from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget, KeyValue, Put, Txn
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store

_FORM: Final = 1
_SECRET_BYTES: Final = 32
_NAME: Final = b"urls"
# Of another version of the signed text the signature is another.
_PURPOSE: Final = "etcd-actions blob 1"
_LONGEST_QUERY: Final = 1024


class BadSignature(EtcdActionsError):
    """The URL was not made here, or was changed."""


class Expired(EtcdActionsError):
    """The URL was good, once."""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """What a URL allows.

    Attributes:
        method: ``GET`` or ``PUT``.
        path: Of what.
        expires: Until when, in whole seconds of the wall clock.
        length: How many bytes are put; None for any number.
        md5: Which digest they have; empty for any.
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

    The secret is made by the first who needs it. To make all URLs useless, delete its key and
    restart the processes.

    Args:
        store: Where it is kept.
        keys: Under which key.
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
        """When something expires that is good for so long."""
        return int(self._clock() + seconds)

    async def query(self, grant: Grant) -> str:
        """The query of a URL that allows it.

        Raises:
            EtcdError: The secret could not be read, or made.
            DecodeError: What is stored is no secret.
        """
        fields = {"expires": str(grant.expires)}
        if grant.length is not None:
            fields["length"] = str(grant.length)
        if grant.md5:
            fields["md5"] = grant.md5.hex()
        fields["signature"] = _sign(await self._load(), grant)
        return urlencode(fields)

    async def check(self, method: Literal["GET", "PUT"], path: str, query: str) -> Grant:
        """What a URL allows.

        Args:
            method: What is asked for.
            path: Of what, not percent-encoded.
            query: The URL's query.

        Raises:
            BadSignature: It does not allow that.
            Expired: It did.
            EtcdError: The secret could not be read.
            DecodeError: What is stored is no secret.
        """
        grant, signature = _read(method, path, query)
        if not hmac.compare_digest(_sign(await self._load(), grant), signature):
            raise BadSignature("the signature is not that of this URL: use it as it was answered")
        if grant.expires <= self._clock():
            raise Expired("the URL has expired: ask for another one, or for a longer time")
        return grant

    async def _load(self) -> bytes:
        async with self._loading:
            if self._secret is None:
                self._secret = await self._read_or_make()
        return self._secret

    async def _read_or_make(self) -> bytes:
        kv = await self._store.get(self._key)
        if kv is None:
            kv = await self._make()
        try:
            stored = msgspec.json.decode(kv.value, type=_Secret)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise DecodeError(
                f"no secret of signatures: {error}", key=kv.key, revision=kv.mod_revision
            ) from None
        if stored.form != _FORM or len(stored.secret) < _SECRET_BYTES:
            raise DecodeError(
                f"a secret of form {stored.form} with {len(stored.secret)} bytes",
                key=kv.key,
                revision=kv.mod_revision,
            )
        return stored.secret

    async def _make(self) -> KeyValue:
        value = msgspec.json.encode(_Secret(_FORM, secrets.token_bytes(_SECRET_BYTES)))
        absent = Compare(self._key, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, 0)
        await self._store.txn(Txn((absent,), (Put(self._key, value),), ()))
        # Another process may have been faster: what is there counts.
        kv = await self._store.get(self._key)
        if kv is None:
            raise Unavailable("the secret of signatures was deleted while it was made")
        return kv


def _sign(secret: bytes, grant: Grant) -> str:
    text = msgspec.json.encode(
        [_PURPOSE, grant.method, grant.path, grant.expires, grant.length, grant.md5.hex()]
    )
    digest = hmac.digest(secret, text, hashlib.sha256)
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _read(method: Literal["GET", "PUT"], path: str, query: str) -> tuple[Grant, str]:
    if len(query) > _LONGEST_QUERY:
        raise BadSignature("the query is too long for a URL that was made here")
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
        raise BadSignature("the URL has no usable signature: use it as it was answered") from None
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
