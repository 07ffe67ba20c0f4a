"""Opens the store of blobs of a setting."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal, NoReturn

from etcd_actions._internal.untrusted_files import local_path
from etcd_actions.blobs.folder import FolderStore
from etcd_actions.blobs.object_store import ObjectStore
from etcd_actions.blobs.protocol import Blob, BlobInfo, BlobStore
from etcd_actions.errors import FailedPrecondition


def open_blob_store(where: Path | str) -> BlobStore:
    """The store; there is nothing to close.

    Args:
        where: A folder, or a URL that fsspec knows.

    Raises:
        ConfigError: It cannot be used.
    """
    if isinstance(where, str):
        if (path := local_path(where)) is None:
            return ObjectStore(where)
        where = path
    return FolderStore(where.absolute())


class NoStore:
    """A store that refuses every request, in place of a missing one.

    Args:
        why: The reason and the remedy, for the error.
    """

    def __init__(self, why: str) -> None:
        self._why = why

    async def put(
        self,
        key: str,
        parts: AsyncIterable[bytes],
        *,
        most: int,
        length: int | None = None,
        md5: bytes = b"",
    ) -> BlobInfo:
        """Refuse it."""
        self._refuse()

    def read(
        self, key: str, start: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[Blob | None]:
        """Refuse it."""
        self._refuse()

    async def stat(self, key: str) -> BlobInfo | None:
        """Refuse it."""
        self._refuse()

    async def delete(self, key: str, *, unless_after: float | None = None) -> bool:
        """Refuse it."""
        self._refuse()

    async def move(self, key: str, to: str, *, unless_after: float | None = None) -> bool:
        """Refuse it."""
        self._refuse()

    def below(self, prefix: str) -> AsyncGenerator[BlobInfo]:
        """Refuse it."""
        self._refuse()

    def native_url(self, key: str) -> str:
        """Refuse it."""
        self._refuse()

    def key_of(self, url: str) -> str | None:
        """None: it has no blobs."""
        return None

    async def signed_url(
        self, method: Literal["GET", "PUT"], key: str, *, expires_in: int, md5: bytes = b""
    ) -> str | None:
        """Refuse it."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise FailedPrecondition(f"there is no store of blobs: {self._why}")
