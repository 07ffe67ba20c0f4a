"""The stored form of a deployed task, and its key; no I/O.

Names come from outside and may hold anything. Each part of a key has all but letters, digits,
``-``, ``.``, ``_`` and ``~`` as ``%XX``. So no name can leave its place in the key, and every key
can be read back.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypeVar
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import DecodeError, InvalidArgument

FORM: Final = 1

MOST_OF_A_NAME: Final = 16 * 1024
"""Bytes of a part of a task's name."""


class TaskId(msgspec.Struct, frozen=True, order=True, gc=False):
    """A version of a task. Any organisation is accepted, so it does not count."""

    project: str
    domain: str
    name: str
    version: str

    def check(self, where: str = "task_id") -> None:
        """Refuse what names no task.

        Raises:
            InvalidArgument: It says which part, and why.
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
        form: Of the stored bytes.
        org: As the client that deployed it names its organisation.
        deployed: When the version was deployed first.
        updated: When its spec was replaced last.
        deployed_by: Whose token deployed it; empty without one.
        short_name: For people.
        environment: The task's environment.
        environment_description: Of the environment, for people.
        description: Of the task, in a line.
        task_type: The task's type.
        is_entrypoint: Whether its program marks it as one to begin with.
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
        """Which version of which task it is."""
        return TaskId(self.project, self.domain, self.name, self.version)


class TaskRecord(TaskHead, frozen=True, kw_only=True, omit_defaults=True):
    """A deployed task; ``spec`` is Flyte's ``task.TaskSpec``."""

    spec: bytes


_Head = TypeVar("_Head", TaskHead, TaskRecord)

_encoder: Final = msgspec.json.Encoder()
_heads: Final = msgspec.json.Decoder(TaskHead)
_records: Final = msgspec.json.Decoder(TaskRecord)


def task_key(prefix: bytes, task: TaskId) -> bytes:
    """The key of a version of a task."""
    parts = (task.project, task.domain, task.name, task.version)
    return prefix + b"/".join(quote_from_bytes(part.encode(), "").encode() for part in parts)


def parse_task_key(prefix: bytes, key: bytes) -> TaskId:
    """Which version of which task a key is of.

    Raises:
        DecodeError: It is the key of none.
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


def encode(record: TaskRecord) -> bytes:
    """The stored bytes."""
    return _encoder.encode(record)


def decode(prefix: bytes, key: bytes, value: bytes) -> TaskRecord:
    """Read the record that a key holds.

    Raises:
        DecodeError: It is none, one of a later version, or another task's.
    """
    return _checked(_records, prefix, key, value)


def decode_head(prefix: bytes, key: bytes, value: bytes) -> TaskHead:
    """The same without the spec, which is skipped instead of read."""
    return _checked(_heads, prefix, key, value)


def _checked(
    decoder: msgspec.json.Decoder[_Head], prefix: bytes, key: bytes, value: bytes
) -> _Head:
    task = parse_task_key(prefix, key)
    try:
        record = decoder.decode(value)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError(f"no deployed task: {error}", key=key) from None
    if record.form != FORM:
        raise DecodeError(f"a deployed task of form {record.form}, not {FORM}", key=key)
    if record.id != task:
        raise DecodeError(f"it is the record of {record.id}", key=key)
    if record.deployed.tzinfo is None or record.updated.tzinfo is None:
        raise DecodeError("a time has no zone", key=key)
    return record
