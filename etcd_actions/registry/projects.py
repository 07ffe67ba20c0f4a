"""Projects that clients created or changed: one key for each.

A project needs no key to be used. Its key says how it is called, what it is for, and whether it is
archived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote_from_bytes

import msgspec
import structlog

from etcd_actions.errors import AlreadyExists, DecodeError, FailedPrecondition, InvalidArgument
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Get,
    KeyRange,
    KeyValue,
    Put,
    RangeResult,
    Txn,
)
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store

FORM: Final = 1

MOST_OF_AN_ID: Final = 63
MOST_BYTES: Final = 16 * 1024
"""Of a project's stored form."""
MOST_PROJECTS: Final = 10_000

_encoder: Final = msgspec.json.Encoder()
_log = structlog.get_logger(__name__)


class StoredProject(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A project that a client created or changed.

    Attributes:
        form: Of the stored bytes.
        id: What runs name it by.
        name: What it is called.
        description: What it is for.
        labels: By their keys.
        is_archived: Whether lists leave it out, unless they are asked for such.
        created: When it was written first.
        updated: When it was written last.
        created_by: Whose token created it; empty without one.
    """

    form: int = FORM
    id: str
    name: str = ""
    description: str = ""
    labels: Mapping[str, str] = {}
    is_archived: bool = False
    created: datetime
    updated: datetime
    created_by: str = ""


_decoder: Final = msgspec.json.Decoder(StoredProject)


class Projects:
    """The projects that are stored. All methods raise :class:`EtcdError` where etcd is away.

    Args:
        store: Reads and writes.
        keys: Where they are kept.
        now: The time that is written down, aware.
    """

    def __init__(
        self, store: Store, keys: Keyspace, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._store = store
        self._prefix = keys.projects
        self._now = now

    async def get(self, project: str) -> StoredProject | None:
        """What is stored of a project; None for nothing.

        Raises:
            DecodeError: It cannot be read.
        """
        key = project_key(self._prefix, project)
        kv = await self._store.get(key)
        return None if kv is None else decode(self._prefix, key, kv.value)

    async def all(self) -> dict[str, StoredProject]:
        """All that are stored, by id; what cannot be read is left out, and logged."""
        found: dict[str, StoredProject] = {}
        async with aclosing(self._store.each(KeyRange.of_prefix(self._prefix))) as kvs:
            async for kv in kvs:
                try:
                    project = decode(self._prefix, kv.key, kv.value)
                except DecodeError as error:
                    _log.warning("project_unreadable", key=repr(kv.key), error=str(error))
                    continue
                found[project.id] = project
        return found

    async def create(
        self,
        project: str,
        *,
        name: str = "",
        description: str = "",
        labels: Mapping[str, str] | None = None,
        by: str = "",
    ) -> None:
        """Store a project that is not stored. Cancelled, it may have been done.

        Raises:
            InvalidArgument: It has no usable id, or is too large.
            AlreadyExists: It is stored.
            FailedPrecondition: There are too many.
        """
        now = self._now()
        value = encode(
            StoredProject(
                id=project,
                name=name,
                description=description,
                labels=labels or {},
                created=now,
                updated=now,
                created_by=by,
            )
        )
        stands = await self._store.get(project_key(self._prefix, project))
        if stands is not None or not (await self._put(project, value, None))[0]:
            raise AlreadyExists(f"project {project!r} exists: flyte update project changes it")

    async def update(
        self,
        project: str,
        *,
        name: str,
        description: str,
        labels: Mapping[str, str],
        is_archived: bool,
        by: str = "",
    ) -> None:
        """Replace what is stored of a project, or store it. Cancelled, it may have been done.

        Raises:
            InvalidArgument: It has no usable id, or is too large.
            DecodeError: What is stored cannot be read, so it is not replaced.
            FailedPrecondition: It is not stored, and there are too many.
        """
        check_id(project)
        before = await self._store.get(project_key(self._prefix, project))
        while True:
            now = self._now()
            stands = None if before is None else decode(self._prefix, before.key, before.value)
            value = encode(
                StoredProject(
                    id=project,
                    name=name,
                    description=description,
                    labels=labels,
                    is_archived=is_archived,
                    created=now if stands is None else stands.created,
                    updated=now,
                    created_by=by if stands is None else stands.created_by,
                )
            )
            done, before = await self._put(project, value, before)
            if done:
                return

    async def _put(
        self, project: str, value: bytes, before: KeyValue | None
    ) -> tuple[bool, KeyValue | None]:
        """Write, if what is there is as before; says whether that was done, and else what is."""
        key = project_key(self._prefix, project)
        if before is None:
            await self._check_room()
        revision = 0 if before is None else before.mod_revision
        unchanged = Compare(key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, revision)
        result = await self._store.txn(
            Txn([unchanged], [Put(key, value)], [Get(KeyRange.of_key(key))])
        )
        if result.succeeded:
            return True, None
        found = result.responses[0]
        assert isinstance(found, RangeResult)
        return False, found.kvs[0] if found.kvs else None

    async def _check_room(self) -> None:
        """Refuse one more where lists would become too long; a few more may pass at once."""
        keys = KeyRange.of_prefix(self._prefix)
        result = await self._store.txn(Txn([], [Get(keys, limit=1, keys_only=True)], []))
        found = result.responses[0]
        assert isinstance(found, RangeResult)
        if found.total >= MOST_PROJECTS:
            raise FailedPrecondition(
                f"{found.total} projects are stored, and {MOST_PROJECTS} may be: a project can be "
                "used without being created"
            )


def project_key(prefix: bytes, project: str) -> bytes:
    """The key of a project; what is no letter, digit, ``-``, ``.``, ``_`` or ``~`` is ``%XX``."""
    return prefix + quote_from_bytes(project.encode(), "").encode()


def check_id(project: str) -> None:
    """Refuse what no run could name as its project.

    Raises:
        InvalidArgument: It says why.
    """
    if project in ("", ".", "..") or "/" in project or not project.isprintable():
        raise InvalidArgument(
            "project.id", f"{project[:80]!r} is no name of a project: give one, without a slash"
        )
    if len(project) > MOST_OF_AN_ID:
        raise InvalidArgument(
            "project.id", f"it has {len(project)} characters, at most {MOST_OF_AN_ID} may be"
        )


def encode(project: StoredProject) -> bytes:
    """The stored bytes.

    Raises:
        InvalidArgument: It has no usable id, or is too large.
    """
    check_id(project.id)
    data = _encoder.encode(project)
    if len(data) > MOST_BYTES:
        raise InvalidArgument(
            "project",
            f"name, description and labels take {len(data)} bytes, at most {MOST_BYTES} may be",
        )
    return data


def decode(prefix: bytes, key: bytes, value: bytes) -> StoredProject:
    """Read the project that a key holds.

    Raises:
        DecodeError: It is none, one of a later version, or another one.
    """
    try:
        project = _decoder.decode(value)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError(f"no project: {error}", key=key) from None
    if project.form != FORM:
        raise DecodeError(f"a project of form {project.form}, not {FORM}", key=key)
    if project_key(prefix, project.id) != key:
        raise DecodeError(f"it is project {project.id[:80]!r}", key=key)
    if project.created.tzinfo is None or project.updated.tzinfo is None:
        raise DecodeError("a time has no zone", key=key)
    return project
