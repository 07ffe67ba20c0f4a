"""Definitions of images in etcd: one key for each definition, one for each name that means one."""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

import msgspec

from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.images.reference import ImageReference
from etcd_actions.model import Keyspace

FORM: Final = 1
_MOST_NAME: Final = 512

_Form = TypeVar("_Form", "StoredImage", "_Named")


class StoredImage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An image's definition.

    Attributes:
        form: Of the stored bytes.
        name: What the SDK calls it, ``<name>:<tag>``.
        spec: Flyte's ``imagebuilder.ImageSpec``.
        context_uri: Where the archive of the files is that its layers name; empty for none.
        context_digest: The SHA-256 of that archive, in hexadecimal digits.
    """

    form: int = FORM
    name: str
    spec: bytes
    context_uri: str = ""
    context_digest: str = ""

    @property
    def digest(self) -> str:
        """The SHA-256 of what is installed, wherever the archive is."""
        said = hashlib.sha256()
        for part in (self.spec, self.context_digest.encode()):
            said.update(len(part).to_bytes(8, "big") + part)
        return said.hexdigest()

    @property
    def reference(self) -> ImageReference:
        """What a task's container names as its image."""
        return ImageReference(self.name, self.digest)


class _Named(msgspec.Struct, frozen=True):
    """Which definition a name means."""

    form: int
    digest: str


class Images:
    """The definitions that are stored. All methods raise :class:`EtcdError` where etcd is away.

    A cancelled write may have been done: the same again is safe.

    Args:
        etcd: The connection.
        keys: Where they are kept.
    """

    def __init__(self, etcd: Etcd, keys: Keyspace) -> None:
        self._etcd = etcd
        self._prefix = keys.images

    async def put(self, image: StoredImage) -> ImageReference:
        """Store a definition, and let its name mean it.

        Raises:
            InvalidArgument: Its name cannot be used.
        """
        name = _checked(image.name)
        reference = image.reference
        # The definition first: a name that means none is never seen.
        await self._etcd.put(self._definition(reference.digest), msgspec.json.encode(image))
        await self._etcd.put(self._name(name), msgspec.json.encode(_Named(FORM, reference.digest)))
        return reference

    async def get(self, digest: str) -> StoredImage | None:
        """A definition.

        Raises:
            DecodeError: What is stored cannot be read, or is another definition.
        """
        key = self._definition(digest)
        image = _decode(await self._read(key), StoredImage, key)
        if image is not None and image.digest != digest:
            raise DecodeError("it is another definition: run the program again", key=key)
        return image

    async def named(self, name: str) -> StoredImage | None:
        """What a name means.

        Raises:
            InvalidArgument: It cannot be used as a name.
            DecodeError: What is stored cannot be read.
        """
        key = self._name(_checked(name))
        found = _decode(await self._read(key), _Named, key)
        return None if found is None else await self.get(found.digest)

    async def _read(self, key: bytes) -> bytes | None:
        result = await self._etcd.range(KeyRange.of_key(key))
        return result.kvs[0].value if result.kvs else None

    def _definition(self, digest: str) -> bytes:
        return self._prefix + b"definitions/" + digest.encode()

    def _name(self, name: str) -> bytes:
        return self._prefix + b"names/" + name.encode()


def _checked(name: str) -> str:
    if not 0 < len(name) <= _MOST_NAME or any(each.isspace() or each == "\0" for each in name):
        raise InvalidArgument(
            "id.name", f"{name[:80]!r} is no name of an image: give 1 to {_MOST_NAME} characters"
        )
    return name


def _decode(data: bytes | None, form: type[_Form], key: bytes) -> _Form | None:
    if data is None:
        return None
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(str(error), key=key) from error
