"""Definitions of images in etcd: one key for each definition, one for each name of one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import msgspec

from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd.api import Compare, Delete, Etcd, KeyRange, KeyValue, Txn
from etcd_actions.images.reference import ImageReference
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store
from etcd_actions.storage.stored_form import StoredForm

FORM: Final = 1
_MOST_NAME: Final = 512
_NOTED_AFTER: Final = timedelta(hours=12)
"""The least time between two notes of a use."""

_DEFINITIONS: Final = b"definitions/"
_NAMES: Final = b"names/"


class StoredImage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An image's definition.

    Attributes:
        name: The SDK's name, ``<name>:<tag>``.
        spec: Flyte's ``imagebuilder.ImageSpec``.
        context_uri: The archive of the files that its layers name; empty for none.
        context_digest: The SHA-256 of that archive, in hexadecimal digits.
        used: The last noted use by its name.
    """

    form: int = FORM
    name: str
    spec: bytes
    context_uri: str = ""
    context_digest: str = ""
    used: datetime | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of the contents, without the archive's URI."""
        digest = hashlib.sha256()
        for part in (self.spec, self.context_digest.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
        return digest.hexdigest()

    @property
    def reference(self) -> ImageReference:
        """The image of a task's container."""
        return ImageReference(self.name, self.digest)


class _Named(msgspec.Struct, frozen=True):
    """The definition of a name."""

    form: int
    digest: str


_images: Final = StoredForm(StoredImage, "definition of an image")
_names: Final = StoredForm(_Named, "name of an image")


class UnusedImage(NamedTuple):
    """A definition without a recent use.

    Attributes:
        digest: Its digest.
        mod_revision: The revision of its key: a use changes it.
    """

    digest: str
    mod_revision: int


class Images:
    """The stored definitions. All methods raise :class:`EtcdError` if etcd fails.

    A cancelled write may have been applied: repeating it is safe.

    Args:
        etcd: The connection.
        keys: The keys of the definitions.
        clock: The time, aware.
    """

    def __init__(
        self,
        etcd: Etcd,
        keys: Keyspace,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._etcd = etcd
        self._store = Store(etcd)
        self._prefix = keys.images
        self._clock = clock

    async def put(self, image: StoredImage) -> ImageReference:
        """Store a definition and its name.

        Raises:
            InvalidArgument: The name is invalid.
        """
        name = _checked(image.name)
        image = msgspec.structs.replace(image, used=self._clock())
        reference = image.reference
        # The definition first: a name always has one.
        await self._etcd.put(self._definition(reference.digest), msgspec.json.encode(image))
        await self._etcd.put(self._name(name), msgspec.json.encode(_Named(FORM, reference.digest)))
        return reference

    async def get(self, digest: str) -> StoredImage | None:
        """A definition; None if it does not exist.

        Raises:
            DecodeError: It cannot be decoded, or is another definition.
        """
        key = self._definition(digest)
        kv = await self._store.get(key)
        image = None if kv is None else _images.decode(kv.value, key=key)
        if image is not None and image.digest != digest:
            raise DecodeError("it is another definition: run the program again", key=key)
        return image

    async def named(self, name: str) -> StoredImage | None:
        """The definition of a name; None without one.

        Raises:
            InvalidArgument: The name is invalid.
            DecodeError: The stored value cannot be decoded.
        """
        key = self._name(_checked(name))
        kv = await self._store.get(key)
        return None if kv is None else await self.get(_names.decode(kv.value, key=key).digest)

    async def use(self, digest: str) -> bool:
        """Note the use of a definition, which delays its collection; returns whether it exists.

        Raises:
            DecodeError: It cannot be decoded.
        """
        while True:
            kv = await self._store.get(self._definition(digest))
            if kv is None:
                return False
            image = _images.decode(kv.value, key=kv.key)
            if image.used is not None and image.used > self._clock() - _NOTED_AFTER:
                return True
            if await self._note(kv, image):
                return True

    async def unused(self, before: datetime) -> list[UnusedImage]:
        """The definitions whose last use was before a time.

        A definition of an earlier version, without a time, counts as used now. One that cannot be
        decoded is omitted.
        """
        found: list[UnusedImage] = []
        definitions = KeyRange.of_prefix(self._prefix + _DEFINITIONS)
        async with aclosing(self._store.each(definitions)) as kvs:
            async for kv in kvs:
                try:
                    image = _images.decode(kv.value, key=kv.key)
                except DecodeError:
                    continue
                if image.used is None or image.used.tzinfo is None:
                    await self._note(kv, image)
                elif image.used < before:
                    digest = kv.key.removeprefix(self._prefix + _DEFINITIONS).decode()
                    found.append(UnusedImage(digest, kv.mod_revision))
        return found

    async def remove(self, image: UnusedImage) -> bool:
        """Remove a definition, then its names, unless it was used since `unused`.

        Returns:
            Whether it was removed.
        """
        definition = self._definition(image.digest)
        unused = Compare.unchanged(definition, image.mod_revision)
        delete = Delete(KeyRange.of_key(definition))
        if not (await self._store.txn(Txn((unused,), (delete,)))).succeeded:
            return False
        absent = Compare.unchanged(definition, 0)
        names = KeyRange.of_prefix(self._prefix + _NAMES)
        async with aclosing(self._store.each(names)) as kvs:
            async for kv in kvs:
                try:
                    if _names.decode(kv.value, key=kv.key).digest != image.digest:
                        continue
                except DecodeError:
                    continue
                await self._store.compare_and_delete(kv, fence=absent)
        return True

    async def _note(self, kv: KeyValue, image: StoredImage) -> bool:
        """Note a use now; False if the definition has changed."""
        value = msgspec.json.encode(msgspec.structs.replace(image, used=self._clock()))
        return (await self._store.compare_and_put(kv, value)).applied

    def _definition(self, digest: str) -> bytes:
        return self._prefix + _DEFINITIONS + digest.encode()

    def _name(self, name: str) -> bytes:
        return self._prefix + _NAMES + name.encode()


def _checked(name: str) -> str:
    if not 0 < len(name) <= _MOST_NAME or any(each.isspace() or each == "\0" for each in name):
        raise InvalidArgument(
            "id.name",
            f"{name[:80]!r} is not a valid name of an image: give 1 to {_MOST_NAME} characters",
        )
    return name
