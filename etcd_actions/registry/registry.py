"""Deploys tasks, and reads them.

A version that exists with the same spec is refused: Flyte's SDK skips it. With another spec it is
replaced, as by Flyte's service. The time of its first deployment stays, so that a version that is
deployed again does not become the latest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog
import trio
from flyteidl2.task.task_definition_pb2 import TaskSpec
from google.protobuf.message import DecodeError as UnreadableMessage

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.quoting import quoted
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.errors import AlreadyExists, DecodeError, NotFound
from etcd_actions.etcd.api import Etcd, KeyValue
from etcd_actions.model import Keyspace
from etcd_actions.registry.task_index import TaskIndex, TaskNameKey, open_task_index
from etcd_actions.registry.task_record import TaskId, TaskRecord, decode, encode, task_key
from etcd_actions.storage.store import Store
from etcd_actions.watch import ReflectorSettings

if TYPE_CHECKING:
    from flyteidl2.task.task_definition_pb2 import TaskIdentifier

_LATEST_TRIES: Final = 3
"""Reads of the latest version: it may be deleted after the index named it."""

_log = structlog.get_logger(__name__)


def task_id_of(identifier: TaskIdentifier) -> TaskId:
    """The version of a task that Flyte's message names; its organisation is ignored."""
    return TaskId(identifier.project, identifier.domain, identifier.name, identifier.version)


class Registry:
    """The deployed tasks; created by :func:`open_registry`.

    Attributes:
        index: All deployed tasks.
    """

    def __init__(
        self, store: Store, keys: Keyspace, index: TaskIndex, now: Callable[[], datetime]
    ) -> None:
        self.index = index
        self._store = store
        self._prefix = keys.tasks
        self._now = now
        self._built_in: dict[TaskId, TaskRecord] = {}

    def build_in(self, spec: TaskSpec) -> None:
        """Add a version of a task that is not in etcd.

        It takes precedence over a deployed one of its name and version.
        """
        named = spec.task_template.id
        task = TaskId(named.project, named.domain, named.name, named.version)
        record = self._record(task, spec, "", "", None)
        self._built_in[task] = record
        self.index.build_in(record)

    async def deploy(
        self, task: TaskId, spec: TaskSpec, *, org: str = "", deployed_by: str = ""
    ) -> None:
        """Write a version of a task; on return lists have it.

        Cancelled, it may have been written: a repetition is then refused.

        Raises:
            InvalidArgument: A part of the name is missing, or too long.
            AlreadyExists: The version exists with the same spec.
            DecodeError: The stored version cannot be decoded, so it is not replaced.
            EtcdError: etcd did not write it.
        """
        task.check()
        key = task_key(self._prefix, task)
        before: KeyValue | None = None
        while True:
            record = self._record(task, spec, org, deployed_by, before)
            revision, current = await self._store.replace(key, encode(record), before)
            if revision:
                break
            before = current
        if before is not None:
            _log.warning("task_replaced", task=str(task))
        if not await self.index.wait_for(revision):
            _log.warning("task_index_behind", revision=revision)

    async def get(self, task: TaskId) -> TaskRecord:
        """A version of a task; without a version the one that was deployed last.

        Raises:
            NotFound: There is none.
            DecodeError: It cannot be decoded.
            EtcdError: etcd could not be read.
        """
        if (built_in := self._built_in.get(task)) is not None:
            await trio.lowlevel.checkpoint()
            return built_in
        if task.version:
            found = await self._read(task)
        else:
            found = await self._read_latest(TaskNameKey(task.project, task.domain, task.name))
        if found is None:
            name = task if task.version else f"{quoted(task.name)} of {task.place}"
            raise NotFound(f"there is no deployed task {name}: deploy it, or see the list")
        return found

    async def task_spec(self, identifier: TaskIdentifier) -> TaskSpec:
        """The spec of :meth:`get`; raises the same errors."""
        return spec_of(await self.get(task_id_of(identifier)))

    async def _read(self, task: TaskId) -> TaskRecord | None:
        key = task_key(self._prefix, task)
        kv = await self._store.get(key)
        return None if kv is None else decode(self._prefix, key, kv.value)

    async def _read_latest(self, task: TaskNameKey) -> TaskRecord | None:
        await self.index.ready()
        for _ in range(_LATEST_TRIES):
            latest = self.index.latest(task)
            if latest is None:
                return None
            found = self._built_in.get(latest.id) or await self._read(latest.id)
            if found is not None:
                return found
        return None

    def _record(
        self, task: TaskId, spec: TaskSpec, org: str, deployed_by: str, before: KeyValue | None
    ) -> TaskRecord:
        now = deployed = self._now()
        if before is not None:
            stored = decode(self._prefix, before.key, before.value)
            if spec_of(stored) == spec:
                raise AlreadyExists(f"the same task is deployed already: {task}")
            deployed = stored.deployed
        template = spec.task_template
        return TaskRecord(
            org=org,
            project=task.project,
            domain=task.domain,
            name=task.name,
            version=task.version,
            deployed=deployed,
            updated=now,
            deployed_by=deployed_by,
            short_name=spec.short_name,
            environment=spec.environment.name,
            environment_description=spec.environment.description,
            description=spec.documentation.short_description,
            task_type=template.type,
            is_entrypoint=template.metadata.is_entrypoint,
            spec=spec.SerializeToString(deterministic=True),
        )


def spec_of(record: TaskRecord) -> TaskSpec:
    """Decode the spec of a record.

    Raises:
        DecodeError: It is not a spec.
    """
    try:
        return TaskSpec.FromString(record.spec)
    except UnreadableMessage as error:
        raise DecodeError(f"the spec of {record.id}: {error}") from None


@asynccontextmanager
async def open_registry(
    etcd: Etcd,
    store: Store,
    keys: Keyspace,
    *,
    now: Callable[[], datetime] = utc_now,
    settings: ReflectorSettings | None = None,
    containment: Containment | None = None,
) -> AsyncIterator[Registry]:
    """Serve the deployed tasks below a prefix, until the context is left.

    Args:
        etcd: The connection; it must live longer.
        store: Reads and writes.
        keys: The keys of the tasks.
        now: The time of deployments, aware.
        settings: How the keys are watched.
        containment: The boundaries of the process.
    """
    async with open_task_index(etcd, keys, settings=settings, containment=containment) as index:
        yield Registry(store, keys, index, now)
