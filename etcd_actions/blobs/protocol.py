"""What every store of blobs can do, and which keys blobs may have."""

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
    """The store did not do it: its disk is full, say, or it was not reached."""


class BlobUnusable(BlobError):
    """What has its name is no regular file: a task may have put anything there."""


class BlobExists(BlobError):
    """The key has another content, and a blob never changes."""


class BlobMismatch(BlobError):
    """What arrived has not the length or the digest that was announced."""


class BlobTooLarge(BlobError):
    """More arrived than is taken."""


class BlobInfo(NamedTuple):
    """A blob that is whole.

    Attributes:
        key: Its key.
        size: Its bytes.
        modified: When it was stored, in seconds of the wall clock; 0 where the store does not say.
    """

    key: str
    size: int
    modified: float


class Blob(NamedTuple):
    """A blob that is open.

    Attributes:
        info: Which one.
        parts: The bytes asked for, some at a time.
    """

    info: BlobInfo
    parts: AsyncIterator[bytes]


class BlobStore(Protocol):
    """Blobs by keys such as ``uploads/flytesnacks/development/…/code.tar.gz``.

    A blob is there as a whole or not at all, and never changes. Every method raises
    :class:`BlobError` when the store does not do it, and
    :class:`~etcd_actions.errors.InvalidArgument` for a key that none can have.
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
        """Store what arrives. The same content again changes nothing but the time.

        Cancelled, it leaves nothing, or the whole blob.

        Args:
            key: Its key.
            parts: The content; what it raises ends the upload.
            most: How many bytes there may be.
            length: How many there must be; None for any number.
            md5: The digest that they must have; empty for any.

        Raises:
            BlobTooLarge: There are more.
            BlobMismatch: Length or digest is another.
            BlobExists: The key has another content.
        """
        ...

    def read(
        self, key: str, start: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[Blob | None]:
        """Open a blob for as long as the context lasts; None where there is none.

        Args:
            key: Its key.
            start: The first byte wanted; beyond the end there are none.
            length: How many, at most; None for all.
        """
        ...

    async def stat(self, key: str) -> BlobInfo | None:
        """What is stored; None for nothing."""
        ...

    async def delete(self, key: str) -> bool:
        """Remove a blob; returns whether there was one."""
        ...

    async def move(self, key: str, to: str, *, unless_after: float | None = None) -> bool:
        """Give a blob another key; returns whether it was done.

        It is not where there is no such blob, or the other key has one. Cut off, the blob has the
        one key, the other, or both.

        Args:
            key: Its key.
            to: Its key afterwards.
            unless_after: It stays where it was stored later than that, or is meanwhile.
        """
        ...

    def below(self, prefix: str) -> AsyncGenerator[BlobInfo]:
        """All blobs below a prefix of whole parts, such as ``uploads/flytesnacks``.

        To be closed when it is left early. What is deleted meanwhile may come all the same.
        """
        ...

    def native_url(self, key: str) -> str:
        """Where a task finds it: a path on this machine, or a URL such as ``s3://…``."""
        ...

    def key_of(self, url: str) -> str | None:
        """The key of what :meth:`native_url` gives; None for what is not in this store."""
        ...

    async def signed_url(
        self, method: Literal["GET", "PUT"], key: str, *, expires_in: int, md5: bytes = b""
    ) -> str | None:
        """A URL at which the store itself does it for anybody; None where it has none.

        Args:
            method: What is to be done.
            key: The key.
            expires_in: Seconds.
            md5: The digest of what is put; without one the store signs no PUT.
        """
        ...


def check_key(key: str, field: str = "key") -> tuple[str, ...]:
    """The parts of a key.

    Raises:
        InvalidArgument: It is empty, too long, or could lead somewhere else.
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
        raise InvalidArgument(field, f"{quoted(key)} begins with a dot: leave it out")
    return parts


def check_part(part: str, field: str) -> str:
    """A name that may be one part of a key.

    Raises:
        InvalidArgument: It may not.
    """
    if not part:
        raise InvalidArgument(field, "it is empty, or has an empty part: give a name")
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(field, f"{quoted(part)} is no UTF-8") from None
    if size > LONGEST_PART:
        raise InvalidArgument(
            field, f"{quoted(part)} has {size} bytes: {LONGEST_PART} may be between two slashes"
        )
    if part in (".", "..") or "/" in part:
        raise InvalidArgument(field, f"{quoted(part)} is no name: give one without a slash or dots")
    if any(ord(each) < 0x20 or ord(each) == 0x7F for each in part):
        raise InvalidArgument(field, f"{quoted(part)} has control characters: leave them out")
    return part
