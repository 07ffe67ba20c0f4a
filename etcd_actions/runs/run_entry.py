"""A run in the index: its record without the fields that no list shows."""

from __future__ import annotations

from datetime import datetime
from sys import intern
from typing import Annotated, Final
from weakref import WeakValueDictionary

import msgspec

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import DecodeError
from etcd_actions.runs.filters import microseconds, moment
from etcd_actions.runs.run_record import Failure, RunRecord, RunStatus, TaskName
from etcd_actions.storage.stored_form import StoredForm

_Number = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
"""The range of Flyte's messages."""


class _FailureKind(msgspec.Struct, frozen=True):
    kind: str = ""


class _Status(msgspec.Struct, frozen=True, kw_only=True):
    phase: _Number = 0
    attempts: _Number = 0
    cache_status: _Number = 0
    started: datetime | None = None
    ended: datetime | None = None
    updated: datetime | None = None
    failure: _FailureKind | None = None


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    """A record; the decoder skips the fields that no list shows."""

    form: int = 1
    org: str = ""
    project: str
    domain: str
    name: str
    task: TaskName = TaskName()
    short_name: str = ""
    environment: str = ""
    task_type: str = ""
    source: _Number = 0
    created: datetime
    creator: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    recovered_from: str = ""
    status: _Status | None = None


_stored: Final = StoredForm(_Head, "record of a run")
_NO_STATUS: Final = _Status()


class Task(msgspec.Struct, frozen=True, weakref=True):
    """A version of a task, shared by the entries of its runs."""

    project: str
    domain: str
    name: str
    version: str
    org: str
    short_name: str
    environment: str
    type: str


class RunEntry(msgspec.Struct, frozen=True, gc=False, order=True):
    """A run. Times are microseconds since 1970.

    Entries are in order by their creation and key: no two have the same key.

    Attributes:
        key: The key of its record.
        task: The task of its root.
        revision: The revision of the record.
        phase: Flyte's number; 0 until it was recorded.
        updated: When its status was last recorded; else when it was created.
        failed_by: The kind of the failure: USER, SYSTEM, or empty.
    """

    created: int
    key: bytes
    task: Task
    org: str
    project: str
    domain: str
    source: int
    creator: str
    labels: tuple[tuple[str, str], ...]
    recovered_from: str
    revision: int
    phase: int
    attempts: int
    cache_status: int
    started: int | None
    ended: int | None
    updated: int
    failed_by: str

    @property
    def name(self) -> str:
        """The run's name."""
        return self.key.rpartition(b"/")[2].decode()

    def label(self, key: str) -> str | None:
        """The value of a label; None without it."""
        for name, value in self.labels:
            if name == key:
                return value
        return None

    def record(self) -> RunRecord:
        """Its record without the fields that no list shows."""
        task = self.task
        status = None
        if self.phase:
            status = RunStatus(
                phase=self.phase,
                attempts=self.attempts,
                cache_status=self.cache_status,
                started=None if self.started is None else moment(self.started),
                ended=None if self.ended is None else moment(self.ended),
                updated=moment(self.updated),
                failure=Failure(kind=self.failed_by) if self.failed_by else None,
            )
        return RunRecord(
            org=self.org,
            project=self.project,
            domain=self.domain,
            name=self.name,
            task=TaskName(task.org, task.project, task.domain, task.name, task.version),
            short_name=task.short_name,
            environment=task.environment,
            task_type=task.type,
            source=self.source,
            created=moment(self.created),
            creator=self.creator,
            labels=dict(self.labels),
            recovered_from=self.recovered_from,
            status=status,
        )


class Tasks:
    """The tasks of all entries, each once."""

    def __init__(self) -> None:
        self._tasks: WeakValueDictionary[tuple[str, ...], Task] = WeakValueDictionary()

    def one(self, *parts: str) -> Task:
        """The task with these fields."""
        task = self._tasks.get(parts)
        if task is None:
            parts = tuple(map(intern, parts))
            task = self._tasks[parts] = Task(*parts)
        return task


def read_entry(key: bytes, value: bytes, revision: int, tasks: Tasks) -> RunEntry:
    """Decode the record of a run.

    Args:
        key: Its key.
        value: Its value.
        revision: Its mod_revision.
        tasks: The tasks of the other entries.

    Raises:
        DecodeError: It is not a record, one of a later version, or another run's.
    """
    head = _stored.decode(value)
    if key.rpartition(b"/")[2] != head.name.encode():
        raise DecodeError(f"it is the record of another run: {quoted(head.name)}")
    status, task = head.status or _NO_STATUS, head.task
    created = _time(head.created)
    started, ended = _time_or_none(status.started), _time_or_none(status.ended)
    updated = _time_or_none(status.updated)
    if updated is None:
        updated = max(created, started or created, ended or created)
    return RunEntry(
        created,
        key,
        tasks.one(
            task.project or head.project,
            task.domain or head.domain,
            task.name,
            task.version,
            task.org,
            head.short_name,
            head.environment,
            head.task_type,
        ),
        intern(head.org),
        intern(head.project),
        intern(head.domain),
        head.source,
        intern(head.creator),
        tuple((intern(name), intern(label)) for name, label in head.labels.items()),
        intern(head.recovered_from),
        revision,
        status.phase,
        status.attempts,
        status.cache_status,
        started,
        ended,
        updated,
        intern(status.failure.kind) if status.failure else "",
    )


def _time(time: datetime) -> int:
    if time.tzinfo is None:
        raise DecodeError(f"a time has no zone: {time}")
    return microseconds(time)


def _time_or_none(time: datetime | None) -> int | None:
    return None if time is None else _time(time)
