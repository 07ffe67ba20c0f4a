"""Blobs in an object store that fsspec knows, such as ``s3://bucket/prefix``.

An upload is received into a temporary file here, and sent to the store when it is complete.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import tempfile
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from weakref import WeakValueDictionary

import trio

from etcd_actions.blobs.protocol import Blob, BlobError, BlobExists, BlobInfo, check_key
from etcd_actions.blobs.spool import Spool, open_spool
from etcd_actions.errors import ConfigError, InvalidArgument

T = TypeVar("T")

_THREADS: Final = 32
_BLOCK: Final = 4 << 20
"""Bytes of one request."""
# Flyte inserts it between a bucket and the path of outputs, to spread them.
_SHARD: Final = re.compile(r"@[a-z0-9]{2}")
_LONGEST_REASON: Final = 500


class ObjectStore:
    """See :class:`~etcd_actions.blobs.BlobStore`.

    Outputs of actions are not directly below the prefix: Flyte inserts two characters between the
    bucket and the rest, ``s3://bucket/x7/prefix/runs/…``. Their keys begin with ``@x7/``.

    Of two uploads of one key in this process, one wins. In two processes that holds in S3, whose
    package lets the store decide. Other packages of fsspec may look first and write then.

    Args:
        url: The bucket, with or without a prefix.

    Raises:
        ConfigError: fsspec, or its package for such a URL, is not installed, or refuses the URL.
    """

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs  # noqa: PLC0415 (an extra)
        except ModuleNotFoundError:
            raise ConfigError(
                f"{url} needs fsspec: pip install etcd-actions[blobs], and fsspec's package for "
                "such a URL, s3fs for s3://"
            ) from None
        try:
            self._files, root = url_to_fs(url)
        except (ImportError, ValueError, OSError) as error:
            raise ConfigError(f"{url} cannot be used: {error}") from None
        self._url = url.rstrip("/")
        scheme, _, rest = self._url.partition("://")
        self._scheme = scheme.lower()
        bucket, _, self._prefix = rest.partition("/")
        self._bucket_url = f"{scheme}://{bucket}"
        # In a file system without buckets, the first part of a path counts as one.
        self._root = str(root).rstrip("/")
        self._bucket = self._root.removesuffix(self._prefix).rstrip("/") if self._prefix else ""
        self._threads = trio.CapacityLimiter(_THREADS)
        # By path. fsspec's own way to create a file looks first and writes then.
        self._creating: WeakValueDictionary[str, trio.Lock] = WeakValueDictionary()

    async def put(
        self,
        key: str,
        parts: AsyncIterable[bytes],
        *,
        most: int,
        length: int | None = None,
        md5: bytes = b"",
    ) -> BlobInfo:
        """See :meth:`~etcd_actions.blobs.BlobStore.put`."""
        path = self._path(key)
        name = Path(tempfile.gettempdir()) / f"etcd-actions-{secrets.token_hex(16)}"
        receiving = open_spool(name, parts, self._in_thread, most=most, length=length, md5=md5)
        async with receiving as spool, self._creation_of(path):
            await self._in_thread(self._hand_over, spool, path)
        return BlobInfo(key, spool.size, 0.0)

    @asynccontextmanager
    async def read(
        self, key: str, start: int = 0, length: int | None = None
    ) -> AsyncIterator[Blob | None]:
        """See :meth:`~etcd_actions.blobs.BlobStore.read`."""
        info = await self.stat(key)
        if info is None:
            yield None
            return
        end = info.size if length is None else min(info.size, start + length)
        async with aclosing(self._parts(self._path(key), start, end)) as parts:
            yield Blob(info, parts)

    async def stat(self, key: str) -> BlobInfo | None:
        """See :meth:`~etcd_actions.blobs.BlobStore.stat`."""
        found = await self._in_thread(self._info, self._path(key))
        return None if found is None else _info(key, found)

    async def delete(self, key: str, *, unless_after: float | None = None) -> bool:
        """See :meth:`~etcd_actions.blobs.BlobStore.delete`.

        A blob that another process stores between the check and the deletion is deleted.
        """
        path = self._path(key)
        async with self._creation_of(path):
            return await self._in_thread(self._delete, path, unless_after)

    async def move(self, key: str, to: str, *, unless_after: float | None = None) -> bool:
        """See :meth:`~etcd_actions.blobs.BlobStore.move`: it counts as stored now.

        The blob is copied. A blob that another process stores at the old key between the last check
        and the deletion is deleted.
        """
        # In one order, so that two moves do not wait for each other.
        first, second = sorted((self._path(key), self._path(to)))
        async with self._creation_of(first):
            if first == second:
                return False
            async with self._creation_of(second):
                return await self._in_thread(self._rename, key, to, unless_after)

    async def below(self, prefix: str) -> AsyncGenerator[BlobInfo]:
        """See :meth:`~etcd_actions.blobs.BlobStore.below`."""
        path = self._path(prefix)
        for name, found in await self._in_thread(self._find, path):
            yield _info(f"{prefix}/{name[len(path) :].lstrip('/')}", found)

    def native_url(self, key: str) -> str:
        """See :meth:`~etcd_actions.blobs.BlobStore.native_url`."""
        shard, rest = _parse(key)
        if not shard:
            return f"{self._url}/{rest}"
        return "/".join(each for each in (self._bucket_url, shard, self._prefix, rest) if each)

    def key_of(self, url: str) -> str | None:
        """See :meth:`~etcd_actions.blobs.BlobStore.key_of`."""
        key = ""
        if url.startswith(f"{self._url}/"):
            key = url[len(self._url) + 1 :]
        elif self._prefix and url.startswith(f"{self._bucket_url}/"):
            shard, _, rest = url[len(self._bucket_url) + 1 :].partition("/")
            if rest.startswith(f"{self._prefix}/"):
                key = f"@{shard}/{rest[len(self._prefix) + 1 :]}"
        try:
            _parse(key)
        except InvalidArgument:
            return None
        return key

    async def signed_url(
        self, method: Literal["GET", "PUT"], key: str, *, expires_in: int, md5: bytes = b""
    ) -> str | None:
        """See :meth:`~etcd_actions.blobs.BlobStore.signed_url`.

        A PUT to such a URL of S3 must have the digest, and overwrites the blob.
        """
        extra: dict[str, Any] = {}
        if method == "PUT":
            if self._scheme not in ("s3", "s3a") or not md5:
                return None
            extra = {
                "client_method": "put_object",
                "ContentMD5": base64.b64encode(md5).decode(),
            }

        def sign(path: str) -> str | None:
            try:
                return str(self._files.sign(path, expiration=expires_in, **extra))
            except NotImplementedError:
                return None

        return await self._in_thread(sign, self._path(key))

    def _creation_of(self, path: str) -> trio.Lock:
        return self._creating.setdefault(path, trio.Lock())

    async def _in_thread(self, function: Callable[..., T], *args: object) -> T:
        """Call the store; its client may raise any exception. A call is never abandoned."""
        try:
            return await trio.to_thread.run_sync(partial(function, *args), limiter=self._threads)
        except BlobError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
            raise BlobError(f"the blob store failed: {reason}") from error

    def _path(self, key: str) -> str:
        shard, rest = _parse(key)
        if not shard:
            return f"{self._root}/{rest}"
        return "/".join(each for each in (self._bucket, shard, self._prefix, rest) if each)

    async def _parts(self, path: str, start: int, end: int) -> AsyncGenerator[bytes]:
        while start < end:
            upto = min(start + _BLOCK, end)
            part = await self._in_thread(partial(self._files.cat_file, start=start, end=upto), path)
            if len(part) != upto - start:
                raise BlobError("the blob was truncated while it was read")
            start = upto
            yield part

    def _info(self, path: str) -> dict[str, Any] | None:
        # The cache of listings may be stale.
        self._files.invalidate_cache()
        try:
            found: dict[str, Any] = self._files.info(path)
        except FileNotFoundError:
            return None
        return found if found.get("type") == "file" else None

    def _hand_over(self, spool: Spool, path: str) -> None:
        try:
            self._files.put_file(str(spool.path), path, mode="create")
        except FileExistsError:
            found = self._info(path)
            if found is None or found["size"] != spool.size or self._md5(path) != spool.md5:
                raise BlobExists(
                    "the key has another content already: choose another name"
                ) from None
            # Again, to set its time.
            self._files.put_file(str(spool.path), path)

    def _md5(self, path: str) -> bytes:
        digest = hashlib.md5(usedforsecurity=False)
        with self._files.open(path, "rb") as file:
            while part := file.read(_BLOCK):
                digest.update(part)
        return digest.digest()

    def _delete(self, path: str, unless_after: float | None = None) -> bool:
        found = self._info(path)
        if found is None:
            return False
        if unless_after is not None and _info("", found).modified > unless_after:
            return False
        try:
            self._files.rm_file(path)
        except FileNotFoundError:
            return False
        return True

    def _rename(self, key: str, to: str, unless_after: float | None) -> bool:
        path, target = self._path(key), self._path(to)
        found = self._info(path)
        if found is None or self._info(target) is not None:
            return False
        if unless_after is not None and _info(key, found).modified > unless_after:
            return False
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.cp_file(path, target)
        again = self._info(path)
        if again is None or _info(key, again) != _info(key, found):
            # It was stored again while it was copied.
            self._delete(target)
            return False
        self._delete(path)
        return True

    def _find(self, path: str) -> list[tuple[str, dict[str, Any]]]:
        self._files.invalidate_cache()
        found: dict[str, dict[str, Any]] = self._files.find(path, detail=True)
        return sorted(
            (name, info)
            for name, info in found.items()
            # A store without folders finds keys with the same first characters, too.
            if name.startswith(f"{path}/") and info.get("type") == "file"
        )


def _parse(key: str) -> tuple[str, str]:
    """The characters that Flyte inserts, or none, and the rest of a key."""
    parts = check_key(key)
    if not key.startswith("@"):
        return "", key
    if not _SHARD.fullmatch(parts[0]) or len(parts) == 1:
        raise InvalidArgument(
            "key", "a first part with @ has two more characters, and parts follow"
        )
    return parts[0][1:], "/".join(parts[1:])


def _info(key: str, found: dict[str, Any]) -> BlobInfo:
    modified = next(
        (
            found[name].timestamp()
            for name in ("LastModified", "last_modified", "mtime", "created")
            if hasattr(found.get(name), "timestamp")
        ),
        0.0,
    )
    return BlobInfo(key, int(found["size"]), modified)
