"""The methods of every store of blobs, and the rules of keys."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal, NamedTuple, Protocol

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import EtcdActionsError, InvalidArgument

LONGEST_KEY: Final = 1024
"""Bytes, as in S3."""
LONGEST_PART: Final = 255
"""Bytes, as in most file systems."""
_MOST_PARTS: Final = 40


class BlobError(EtcdActionsError):
    """The store failed: for example, its disk is full, or it cannot be reached."""


class BlobUnusable(BlobError):
    """The key belongs to no regular file: a task may have written anything there."""


class BlobExists(BlobError):
    """The key has another content; a blob never changes."""


class BlobMismatch(BlobError):
    """The received bytes do not have the announced length or digest."""


class BlobTooLarge(BlobError):
    """More bytes arrived than are accepted."""


class BlobInfo(NamedTuple):
    """A complete blob.

    Attributes:
        key: Its key.
        size: Its bytes.
        modified: When it was stored, in seconds since 1970; 0 if the store does not report it.
    """

    key: str
    size: int
    modified: float


class Blob(NamedTuple):
    """An open blob.

    Attributes:
        info: Its key, size and time.
        parts: The requested bytes, some at a time.
    """

    info: BlobInfo
    parts: AsyncIterator[bytes]


class BlobStore(Protocol):
    """Blobs by keys such as ``uploads/flytesnacks/development/…/code.tar.gz``.

    A blob is complete or does not exist, and never changes. Every method raises
    :class:`BlobError` if the store fails, and
    :class:`~etcd_actions.errors.InvalidArgument` for an invalid key.
    """

    async def put(
        self,
        key: str,
        parts: AsyncIterable[bytes],
        *,
        most: int,
        length: int | None = None,
        md5: bytes = b"",
    ) -> BlobInfo:
        """Store a blob; storing the same content again only sets its time.

        Cancelled, it leaves nothing, or the complete blob.

        Args:
            key: Its key.
            parts: The content; an error that it raises ends the upload.
            most: The largest number of bytes.
            length: The required number of bytes; None for any.
            md5: The required digest; empty for any.

        Raises:
            BlobTooLarge: There are more bytes.
            BlobMismatch: Length or digest differ.
            BlobExists: The key has another content.
        """

    def read(
        self, key: str, start: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[Blob | None]:
        """Open a blob until the context is left; None if it does not exist.

        Args:
            key: Its key.
            start: The offset of the first byte; it may be beyond the end.
            length: The largest number of bytes; None for all.
        """

    async def stat(self, key: str) -> BlobInfo | None:
        """Read the size and the time of a blob; None if it does not exist."""

    async def delete(self, key: str, *, unless_after: float | None = None) -> bool:
        """Remove a blob; returns whether it was removed.

        Args:
            key: Its key.
            unless_after: Seconds since 1970; the blob stays if it was stored later, or is stored
                during the call.
        """

    async def move(self, key: str, to: str, *, unless_after: float | None = None) -> bool:
        """Give a blob another key; returns whether it was moved.

        It stays if the other key has a blob. Cancelled, the blob has one key, the other, or both.

        Args:
            key: Its key.
            to: Its new key.
            unless_after: Seconds since 1970; the blob stays if it was stored later, or is stored
                during the call.
        """

    def below(self, prefix: str) -> AsyncGenerator[BlobInfo]:
        """All blobs below a prefix of complete parts, such as ``uploads/flytesnacks``.

        A caller that stops early has to close the generator. Blobs that are deleted during the call
        may be included.
        """

    def native_url(self, key: str) -> str:
        """The location for tasks: a path on this machine, or a URL such as ``s3://…``."""

    def key_of(self, url: str) -> str | None:
        """The key of a location of :meth:`native_url`; None if it is not in this store."""

    async def signed_url(
        self, method: Literal["GET", "PUT"], key: str, *, expires_in: int, md5: bytes = b""
    ) -> str | None:
        """A URL at which the store itself serves any client; None if it has none.

        Args:
            method: The method of the request.
            key: The key.
            expires_in: Seconds.
            md5: The digest of the bytes to put; without one the store signs no PUT.
        """


def check_key(key: str, field: str = "key") -> tuple[str, ...]:
    """The parts of a key.

    Raises:
        InvalidArgument: It is empty, too long, or not normalised.
    """
    parts = tuple(key.split("/"))
    for part in parts:
        check_part(part, field)
    if len(key.encode()) > LONGEST_KEY or len(parts) > _MOST_PARTS:
        raise InvalidArgument(
            field,
            f"{quoted(key)} is too long: all together may have {LONGEST_KEY} bytes and "
            f"{_MOST_PARTS} parts",
        )
    if key.startswith("."):
        raise InvalidArgument(field, f"{quoted(key)} begins with a dot: omit it")
    return parts


def check_part(part: str, field: str) -> str:
    """Check one part of a key; raises InvalidArgument."""
    if not part:
        raise InvalidArgument(field, "it is empty, or has an empty part: give a name")
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(field, f"{quoted(part)} is not UTF-8") from None
    if size > LONGEST_PART:
        raise InvalidArgument(
            field, f"{quoted(part)} has {size} bytes: {LONGEST_PART} may be between two slashes"
        )
    if part in (".", "..") or "/" in part:
        raise InvalidArgument(
            field, f"{quoted(part)} is not a valid name: give one without a slash or dots"
        )
    if any(ord(each) < 0x20 or ord(each) == 0x7F for each in part):
        raise InvalidArgument(field, f"{quoted(part)} has control characters: omit them")
    return part
