"""All deployed tasks, in memory, without their specs: fed by a watch of their keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple

from etcd_actions._internal.containment import Containment
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.registry.task_record import TaskHead, TaskId, decode_head, parse_task_key
from etcd_actions.storage.prefix_index import PrefixIndex, keep_index
from etcd_actions.watch import Change, ReflectorSettings

_PORTION: Final = 2_000


class TaskNameKey(NamedTuple):
    """A task, of any version."""

    project: str
    domain: str
    name: str


class TaskIndexStatistics(NamedTuple):
    """The numbers of tasks, of versions, and of records that cannot be decoded."""

    tasks: int
    versions: int
    undecodable: int


class TaskIndex(PrefixIndex[TaskHead]):
    """The index of deployed tasks; created by :func:`open_task_index`."""

    def __init__(self, prefix: bytes) -> None:
        super().__init__()
        self._prefix = prefix
        self._tasks: dict[TaskNameKey, dict[str, TaskHead]] = {}
        self._built_in: dict[TaskId, TaskHead] = {}

    def build_in(self, head: TaskHead) -> None:
        """Add a task without a key; it takes precedence over a key of its name and version."""
        self._built_in[head.id] = head
        self._insert(head)

    def statistics(self) -> TaskIndexStatistics:
        """The present counts."""
        versions = sum(map(len, self._tasks.values()))
        return TaskIndexStatistics(len(self._tasks), versions, len(self._undecodable))

    def versions(self, task: TaskNameKey) -> Mapping[str, TaskHead]:
        """The versions of a task."""
        return self._tasks.get(task, {})

    def latest(self, task: TaskNameKey) -> TaskHead | None:
        """The version of a task that was deployed last; None if there is none."""
        return max(self.versions(task).values(), key=deployed_in_order, default=None)

    def portions(self, project: tuple[str, str] | None) -> Iterator[Sequence[Sequence[TaskHead]]]:
        """The tasks of a project and domain, or all; each with its versions, some at a time."""
        portion: list[Sequence[TaskHead]] = []
        for task, versions in list(self._tasks.items()):
            if project is None or task[:2] == project:
                portion.append(tuple(versions.values()))
                if len(portion) == _PORTION:
                    yield portion
                    portion = []
        yield portion

    def _decode(self, change: Change) -> TaskHead:
        return decode_head(self._prefix, change.key, change.value)

    def _put(self, key: bytes, record: TaskHead | None) -> None:
        try:
            task = parse_task_key(self._prefix, key)
        except DecodeError:
            return
        if task in self._built_in:
            return
        if record is not None:
            self._insert(record)
            return
        name = TaskNameKey(task.project, task.domain, task.name)
        versions = self._tasks.get(name, {})
        versions.pop(task.version, None)
        if not versions:
            self._tasks.pop(name, None)

    def _clear(self) -> None:
        self._tasks.clear()
        for head in self._built_in.values():
            self._insert(head)

    def _insert(self, head: TaskHead) -> None:
        name = TaskNameKey(head.project, head.domain, head.name)
        self._tasks.setdefault(name, {})[head.version] = head


def deployed_in_order(head: TaskHead) -> tuple[object, str]:
    """A sort key: greater for a version that was deployed later."""
    return head.deployed, head.version


def open_task_index(
    etcd: Etcd,
    keys: Keyspace,
    *,
    settings: ReflectorSettings | None = None,
    containment: Containment | None = None,
) -> AbstractAsyncContextManager[TaskIndex]:
    """Keep an index of the deployed tasks; see :mod:`etcd_actions.storage.prefix_index`."""
    return keep_index(
        TaskIndex(keys.tasks),
        etcd,
        keys.tasks,
        name="deployed tasks",
        settings=settings,
        containment=containment,
    )
