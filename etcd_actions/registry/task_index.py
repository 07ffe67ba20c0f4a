"""All deployed tasks, in memory, without their specs: fed by a watch of their keys."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

from etcd_actions._internal.containment import Containment
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.registry.task_record import TaskHead, TaskId, decode_head, parse_task_key
from etcd_actions.storage.undecodable import Undecodable
from etcd_actions.watch import Change, ReflectorSettings, Replica, follow

PATIENCE: Final = 10.0
"""Seconds that a list waits for the index at a start."""

_PORTION: Final = 2_000


class TaskNameKey(NamedTuple):
    """A task, of whatever version."""

    project: str
    domain: str
    name: str


class TaskIndexStatistics(NamedTuple):
    """How many tasks and versions there are, and how many records cannot be read."""

    tasks: int
    versions: int
    undecodable: int


class TaskIndex:
    """See the module's text; made by :func:`open_task_index`."""

    def __init__(self, prefix: bytes) -> None:
        self._prefix = prefix
        self._followed: Replica | None = None
        self._tasks: dict[TaskNameKey, dict[str, TaskHead]] = {}
        self._undecodable = Undecodable()
        self._built_in: dict[TaskId, TaskHead] = {}

    def build_in(self, head: TaskHead) -> None:
        """Have a task that no key says; what the watch brings of its name and version is left."""
        self._built_in[head.id] = head
        self._insert(head)

    def statistics(self) -> TaskIndexStatistics:
        """See :class:`TaskIndexStatistics`."""
        versions = sum(map(len, self._tasks.values()))
        return TaskIndexStatistics(len(self._tasks), versions, len(self._undecodable))

    def undecodable(self) -> dict[bytes, str]:
        """The keys of the records that cannot be read, and why."""
        return self._undecodable.reasons()

    async def ready(self, patience: float = PATIENCE) -> None:
        """Return once all tasks are known.

        Raises:
            EtcdError: etcd does not show them, or they were not read in time.
        """
        assert self._followed is not None
        await self._followed.ready(patience)

    async def wait_for(self, revision: int, patience: float = 2.0) -> bool:
        """Return once a task that was written is in the index; False if it is not in time."""
        assert self._followed is not None
        return await self._followed.wait_for(revision, patience)

    def versions(self, task: TaskNameKey) -> Mapping[str, TaskHead]:
        """The versions of a task."""
        return self._tasks.get(task, {})

    def latest(self, task: TaskNameKey) -> TaskHead | None:
        """The version of a task that was deployed last; None where there is none."""
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

    # What the watch brings.

    def take(self, change: Change, /) -> None:
        """Take the change of one key in."""
        key = change.key
        head = None
        try:
            if not change.is_delete:
                head = decode_head(self._prefix, key, change.value)
            self._undecodable.forget(key)
        except BaseException as error:
            self._undecodable.add(key, str(error))
            raise
        finally:
            self._put(key, head)

    def forget_all(self) -> None:
        """All keys are going to be read anew."""
        self._tasks.clear()
        for head in self._built_in.values():
            self._insert(head)
        self._undecodable.begin_again()

    def _insert(self, head: TaskHead) -> None:
        name = TaskNameKey(head.project, head.domain, head.name)
        self._tasks.setdefault(name, {})[head.version] = head

    def _put(self, key: bytes, head: TaskHead | None) -> None:
        try:
            task = parse_task_key(self._prefix, key)
        except DecodeError:
            return
        if task in self._built_in:
            return
        if head is not None:
            self._insert(head)
            return
        name = TaskNameKey(task.project, task.domain, task.name)
        versions = self._tasks.get(name, {})
        versions.pop(task.version, None)
        if not versions:
            self._tasks.pop(name, None)


def deployed_in_order(head: TaskHead) -> tuple[object, str]:
    """What is greater for a version that was deployed later."""
    return head.deployed, head.version


@asynccontextmanager
async def open_task_index(
    etcd: Etcd,
    keys: Keyspace,
    *,
    settings: ReflectorSettings | None = None,
    containment: Containment | None = None,
) -> AsyncIterator[TaskIndex]:
    """Keep an index of all deployed tasks, for as long as the context lasts.

    Args:
        etcd: The connection; it must live longer.
        keys: Where the tasks are.
        settings: How they are watched.
        containment: The boundaries of the process.
    """
    index = TaskIndex(keys.tasks)
    async with follow(
        etcd,
        keys.tasks,
        index,
        name="deployed tasks",
        settings=settings or ReflectorSettings(),
        containment=containment or Containment(),
    ) as followed:
        index._followed = followed
        yield index
