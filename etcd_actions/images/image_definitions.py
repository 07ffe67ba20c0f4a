"""Definitions of images in etcd: one key for each definition, one for each name that means one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple, TypeVar

import msgspec

from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Etcd,
    KeyRange,
    KeyValue,
    Put,
    Txn,
)
from etcd_actions.images.reference import ImageReference
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store

FORM: Final = 1
_MOST_NAME: Final = 512
_NOTED_AFTER: Final = timedelta(hours=12)
"""A use is noted where the one before it was noted longer ago."""

_DEFINITIONS: Final = b"definitions/"
_NAMES: Final = b"names/"

_Form = TypeVar("_Form", "StoredImage", "_Named")


class StoredImage(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """An image's definition.

    Attributes:
        form: Of the stored bytes.
        name: What the SDK calls it, ``<name>:<tag>``.
        spec: Flyte's ``imagebuilder.ImageSpec``.
        context_uri: Where the archive of the files is that its layers name; empty for none.
        context_digest: The SHA-256 of that archive, in hexadecimal digits.
        used: When it was stored, or asked for by its name, as far as that was noted.
    """

    form: int = FORM
    name: str
    spec: bytes
    context_uri: str = ""
    context_digest: str = ""
    used: datetime | None = None

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


class UnusedImage(NamedTuple):
    """A definition that nobody has asked for by its name for some time.

    Attributes:
        digest: Its digest.
        mod_revision: Of its key: another one means that it was used.
    """

    digest: str
    mod_revision: int


class Images:
    """The definitions that are stored. All methods raise :class:`EtcdError` where etcd is away.

    A cancelled write may have been done: the same again is safe.

    Args:
        etcd: The connection.
        keys: Where they are kept.
        clock: The time, aware.
    """

    def __init__(
        self,
        etcd: Etcd,
        keys: Keyspace,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._etcd = etcd
        self._prefix = keys.images
        self._clock = clock

    async def put(self, image: StoredImage) -> ImageReference:
        """Store a definition, and let its name mean it.

        Raises:
            InvalidArgument: Its name cannot be used.
        """
        name = _checked(image.name)
        image = msgspec.structs.replace(image, used=self._clock())
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
        kv = await self._read(key)
        image = None if kv is None else _decode(kv.value, StoredImage, key)
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
        kv = await self._read(key)
        return None if kv is None else await self.get(_decode(kv.value, _Named, key).digest)

    async def use(self, digest: str) -> bool:
        """Note that somebody asks for a definition; returns whether it is there.

        What is noted is not collected for a time, and the caller may name it.

        Raises:
            DecodeError: What is stored cannot be read.
        """
        while True:
            kv = await self._read(self._definition(digest))
            if kv is None:
                return False
            image = _decode(kv.value, StoredImage, kv.key)
            if image.used is not None and image.used > self._clock() - _NOTED_AFTER:
                return True
            if await self._note(kv, image):
                return True

    async def unused(self, before: datetime) -> list[UnusedImage]:
        """The definitions that were used last before a time.

        Of those of an earlier version nobody knows: they count as used now. What cannot be read
        stays.
        """
        found: list[UnusedImage] = []
        definitions = KeyRange.of_prefix(self._prefix + _DEFINITIONS)
        async with aclosing(Store(self._etcd).each(definitions)) as kvs:
            async for kv in kvs:
                try:
                    image = _decode(kv.value, StoredImage, kv.key)
                except DecodeError:
                    continue
                if image.used is None or image.used.tzinfo is None:
                    await self._note(kv, image)
                elif image.used < before:
                    digest = kv.key.removeprefix(self._prefix + _DEFINITIONS).decode()
                    found.append(UnusedImage(digest, kv.mod_revision))
        return found

    async def remove(self, image: UnusedImage) -> bool:
        """Remove a definition that was not used since; returns whether that was done.

        Its names go afterwards: one that means no definition means nothing.
        """
        definition = self._definition(image.digest)
        unused = Compare(
            definition, CompareTarget.MOD_REVISION, CompareResult.EQUAL, image.mod_revision
        )
        delete = Delete(KeyRange.of_key(definition))
        if not (await self._etcd.txn(Txn((unused,), (delete,), ()))).succeeded:
            return False
        gone = Compare(definition, CompareTarget.CREATE_REVISION, CompareResult.EQUAL, 0)
        names = KeyRange.of_prefix(self._prefix + _NAMES)
        async with aclosing(Store(self._etcd).each(names)) as kvs:
            async for kv in kvs:
                try:
                    if _decode(kv.value, _Named, kv.key).digest != image.digest:
                        continue
                except DecodeError:
                    continue
                delete = Delete(KeyRange.of_key(kv.key))
                await self._etcd.txn(Txn((gone, _unchanged(kv)), (delete,), ()))
        return True

    async def _note(self, kv: KeyValue, image: StoredImage) -> bool:
        """Note a use now; False where the definition has changed."""
        value = msgspec.json.encode(msgspec.structs.replace(image, used=self._clock()))
        noted = await self._etcd.txn(Txn((_unchanged(kv),), (Put(kv.key, value),), ()))
        return noted.succeeded

    async def _read(self, key: bytes) -> KeyValue | None:
        result = await self._etcd.range(KeyRange.of_key(key))
        return result.kvs[0] if result.kvs else None

    def _definition(self, digest: str) -> bytes:
        return self._prefix + _DEFINITIONS + digest.encode()

    def _name(self, name: str) -> bytes:
        return self._prefix + _NAMES + name.encode()


def _checked(name: str) -> str:
    if not 0 < len(name) <= _MOST_NAME or any(each.isspace() or each == "\0" for each in name):
        raise InvalidArgument(
            "id.name", f"{name[:80]!r} is no name of an image: give 1 to {_MOST_NAME} characters"
        )
    return name


def _unchanged(kv: KeyValue) -> Compare:
    return Compare(kv.key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, kv.mod_revision)


def _decode(data: bytes, form: type[_Form], key: bytes) -> _Form:
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DecodeError(str(error), key=key) from error
