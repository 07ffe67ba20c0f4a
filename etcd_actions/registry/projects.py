"""Projects that clients created or changed: one key for each.

A project can be used without a key. Its key has its name, its description, and whether it is
archived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import aclosing
from datetime import datetime
from typing import Final
from urllib.parse import quote_from_bytes

import msgspec
import structlog

from etcd_actions.actions.rewrite import utc_now
from etcd_actions.errors import AlreadyExists, DecodeError, FailedPrecondition, InvalidArgument
from etcd_actions.etcd.api import Get, KeyRange, RangeResult, Txn
from etcd_actions.model import Keyspace
from etcd_actions.storage.store import Store
from etcd_actions.storage.stored_form import StoredForm

FORM: Final = 1

MOST_OF_AN_ID: Final = 63
MOST_BYTES: Final = 16 * 1024
"""The largest stored form of a project."""
MOST_PROJECTS: Final = 10_000

_encoder: Final = msgspec.json.Encoder()
_log = structlog.get_logger(__name__)


class StoredProject(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A project that a client created or changed.

    Attributes:
        id: The project of runs.
        name: Its name for display.
        is_archived: Whether lists omit it, unless they include archived projects.
        created: The time of the first write.
        updated: The time of the last write.
        created_by: The subject of the token that created it; empty without one.
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


_stored: Final = StoredForm(StoredProject, "project", ("created", "updated"))


class Projects:
    """The stored projects. All methods raise :class:`EtcdError` if etcd fails.

    Args:
        store: Reads and writes.
        keys: The keys of the projects.
        now: The time of changes, aware.
    """

    def __init__(self, store: Store, keys: Keyspace, now: Callable[[], datetime] = utc_now) -> None:
        self._store = store
        self._prefix = keys.projects
        self._now = now

    async def get(self, project: str) -> StoredProject | None:
        """A stored project; None if it is not stored.

        Raises:
            DecodeError: It cannot be decoded.
        """
        key = project_key(self._prefix, project)
        kv = await self._store.get(key)
        return None if kv is None else decode(self._prefix, key, kv.value)

    async def all(self) -> dict[str, StoredProject]:
        """All stored projects, by id; one that cannot be decoded is omitted, and logged."""
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
        """Store a new project. Cancelled, it may be stored.

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
        key = project_key(self._prefix, project)
        if await self._store.get(key) is None:
            await self._check_capacity()
            written, _ = await self._store.replace(key, value, None)
        else:
            written = 0
        if not written:
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
        """Replace a stored project, or store it. Cancelled, it may be stored.

        Raises:
            InvalidArgument: It has no usable id, or is too large.
            DecodeError: The stored project cannot be decoded, so it is not replaced.
            FailedPrecondition: It is not stored, and there are too many.
        """
        check_id(project)
        key = project_key(self._prefix, project)
        before = await self._store.get(key)
        while True:
            now = self._now()
            stored = None if before is None else decode(self._prefix, key, before.value)
            value = encode(
                StoredProject(
                    id=project,
                    name=name,
                    description=description,
                    labels=labels,
                    is_archived=is_archived,
                    created=now if stored is None else stored.created,
                    updated=now,
                    created_by=by if stored is None else stored.created_by,
                )
            )
            if before is None:
                await self._check_capacity()
            written, before = await self._store.replace(key, value, before)
            if written:
                return

    async def _check_capacity(self) -> None:
        """Refuse one more project; concurrent calls may exceed the limit by a few."""
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
    """The key of a project, with its id percent-encoded."""
    return prefix + quote_from_bytes(project.encode(), "").encode()


def check_id(project: str) -> None:
    """Check that runs can have the id of a project.

    Raises:
        InvalidArgument: They cannot.
    """
    if project in ("", ".", "..") or "/" in project or not project.isprintable():
        raise InvalidArgument(
            "project.id",
            f"{project[:80]!r} is not a valid name of a project: give one, without a slash",
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
    """Decode the project of a key.

    Raises:
        DecodeError: It is not a project, one of a later version, or another project.
    """
    project = _stored.decode(value, key=key)
    if project_key(prefix, project.id) != key:
        raise DecodeError(f"it is project {project.id[:80]!r}", key=key)
    return project
