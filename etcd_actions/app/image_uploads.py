"""The files that the SDK uploaded for an image: in the store of blobs or on this machine."""

from __future__ import annotations

from typing import Final

from etcd_actions._internal.quoting import quoted
from etcd_actions._internal.untrusted_files import (
    UnusableFile,
    in_thread,
    is_regular,
    local_path,
    read_regular,
)
from etcd_actions.blobs import BlobError, BlobStore
from etcd_actions.errors import FailedPrecondition, InvalidArgument

_WITHIN: Final = 60.0
"""Seconds that a read of a file may take."""


class ImageUploads:
    """Reads uploads for :class:`~etcd_actions.images.ImageBuilds`.

    It also reads files outside the store: images are built on the machine that runs tasks, where
    a client that may enqueue can read every file of this user anyway.
    """

    def __init__(self, store: BlobStore) -> None:
        self._store = store

    async def read(self, uri: str, most: int) -> bytes:
        """The bytes at a URI.

        Raises:
            InvalidArgument: There is no file, or one of more than ``most`` bytes.
            FailedPrecondition: It cannot be read now.
        """
        try:
            key = self._store.key_of(uri)
            data = await (self._local(uri, most) if key is None else self._stored(key, most))
        except FileNotFoundError:
            data = None
        except (BlobError, OSError, UnusableFile) as error:
            raise FailedPrecondition(f"{quoted(uri, 300)} cannot be read: {error}") from None
        if data is None:
            raise InvalidArgument("inputs", f"there is nothing at {quoted(uri, 300)}: upload it")
        return data

    async def exists(self, uri: str) -> bool:
        """Whether a file is at a URI; False if that is unknown: the SDK uploads it again then."""
        try:
            key = self._store.key_of(uri)
            if key is not None:
                return await self._store.stat(key) is not None
            path = None if "\0" in uri else local_path(uri)
            return path is not None and await in_thread(_WITHIN, path, is_regular, path)
        except (BlobError, InvalidArgument, OSError, UnusableFile):
            return False

    async def _stored(self, key: str, most: int) -> bytes | None:
        async with self._store.read(key) as blob:
            if blob is None:
                return None
            if blob.info.size > most:
                raise InvalidArgument(
                    "inputs", f"{quoted(key)} has {blob.info.size} bytes: {most} are read at most"
                )
            return b"".join([part async for part in blob.parts])

    async def _local(self, uri: str, most: int) -> bytes:
        path = local_path(uri)
        if path is None or "\0" in uri:
            raise InvalidArgument(
                "inputs", f"{quoted(uri, 300)} is not in the blob store of this service"
            )

        def read() -> bytes:
            return read_regular(path, limit=most)

        return await in_thread(_WITHIN, path, read)
