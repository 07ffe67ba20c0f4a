"""The stored form of a deployed task, and its key; no I/O.

Names are untrusted text: each part of a key is percent-encoded, so that every key can be parsed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.storage.stored_form import StoredForm

FORM: Final = 1

MOST_OF_A_NAME: Final = 16 * 1024
"""Bytes of a part of a task's name."""


class TaskId(msgspec.Struct, frozen=True, order=True, gc=False):
    """A version of a task; its organisation is ignored."""

    project: str
    domain: str
    name: str
    version: str

    def check(self, where: str = "task_id") -> None:
        """Check the parts.

        Raises:
            InvalidArgument: A part is missing, or too long.
        """
        for part in self.__struct_fields__:
            value: str = getattr(self, part)
            if not value:
                raise InvalidArgument(f"{where}.{part}", "it is missing")
            size = len(value.encode())
            if size > MOST_OF_A_NAME:
                raise InvalidArgument(
                    f"{where}.{part}", f"it has {size} bytes, at most {MOST_OF_A_NAME} may be"
                )

    def __str__(self) -> str:
        return f"{quoted(self.name)}, version {quoted(self.version)}, of {self.place}"

    @property
    def place(self) -> str:
        """Its project and domain, for messages."""
        return f"{quoted(self.project)}, {quoted(self.domain)}"


class TaskHead(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A deployed task without its spec.

    Attributes:
        org: The organisation, as the client that deployed it names it.
        deployed: When the version was first deployed.
        updated: When its spec was last replaced.
        deployed_by: The subject of the token that deployed it; empty without one.
        environment: The name of the task's environment.
        is_entrypoint: Whether its program marks it as an entry point.
    """

    form: int = FORM
    org: str = ""
    project: str
    domain: str
    name: str
    version: str
    deployed: datetime
    updated: datetime
    deployed_by: str = ""
    short_name: str = ""
    environment: str = ""
    environment_description: str = ""
    description: str = ""
    task_type: str = ""
    is_entrypoint: bool = False

    @property
    def id(self) -> TaskId:
        """The version of the task."""
        return TaskId(self.project, self.domain, self.name, self.version)


class TaskRecord(TaskHead, frozen=True, kw_only=True, omit_defaults=True):
    """A deployed task; ``spec`` is Flyte's ``task.TaskSpec``."""

    spec: bytes


_Head = TypeVar("_Head", TaskHead, TaskRecord)

encode: Final[Callable[[TaskRecord], bytes]] = msgspec.json.Encoder().encode
"""Returns the stored bytes."""

_TIMES: Final = ("deployed", "updated")
_heads: Final = StoredForm(TaskHead, "deployed task", _TIMES)
_records: Final = StoredForm(TaskRecord, "deployed task", _TIMES)


def task_key(prefix: bytes, task: TaskId) -> bytes:
    """The key of a version of a task."""
    parts = (task.project, task.domain, task.name, task.version)
    return prefix + b"/".join(quote_from_bytes(part.encode(), "").encode() for part in parts)


def parse_task_key(prefix: bytes, key: bytes) -> TaskId:
    """The version of the task that a key belongs to.

    Raises:
        DecodeError: It is not a key of a task.
    """
    parts = key.removeprefix(prefix).split(b"/")
    if key.startswith(prefix) and len(parts) == 4:
        try:
            task = TaskId(*(unquote_to_bytes(part).decode() for part in parts))
        except UnicodeDecodeError:
            pass
        else:
            if task_key(prefix, task) == key:
                return task
    raise DecodeError("it is not the key of a task", key=key)


def decode(prefix: bytes, key: bytes, value: bytes) -> TaskRecord:
    """Decode the record of a key.

    Raises:
        DecodeError: It is not a record, one of a later version, or another task's.
    """
    return _checked(_records, prefix, key, value)


def decode_head(prefix: bytes, key: bytes, value: bytes) -> TaskHead:
    """As :func:`decode`, without the spec, which is skipped."""
    return _checked(_heads, prefix, key, value)


def _checked(stored: StoredForm[_Head], prefix: bytes, key: bytes, value: bytes) -> _Head:
    task = parse_task_key(prefix, key)
    record = stored.decode(value, key=key)
    if record.id != task:
        raise DecodeError(f"it is the record of {record.id}", key=key)
    return record
