"""The stored form of a run's record, and of the history of an action; no I/O.

A run's record is written in the transaction that creates its root, and its status by the leader,
as it records: it is what a list of runs shows, also when the objects of the run have expired. The
history of an action keeps what its object has room for only once: how each attempt went.

Values are JSON. Fields that this version does not know are lost by a rewrite, so a later version
has another ``form``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypeVar

import msgspec

from etcd_actions.errors import DecodeError

FORM: Final = 1

ANONYMOUS: Final = "anonymous"
"""The subject of a client that showed no token, or one that has no name.

Records leave it out; lists filter by it as by any other name.
"""

_Struct = msgspec.Struct


class TaskName(_Struct, frozen=True, omit_defaults=True):
    """Which task a run runs. An ephemeral one has a name and a version, too."""

    org: str = ""
    project: str = ""
    domain: str = ""
    name: str = ""
    version: str = ""


class Failure(_Struct, frozen=True, omit_defaults=True):
    """Why an attempt failed; ``kind`` is USER or SYSTEM."""

    code: str = ""
    kind: str = ""
    message: str = ""


class RunStatus(_Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How a run is, as its root was recorded last.

    Attributes:
        create_revision: Which incarnation of the root it is about.
        revision: Which state of it: an older one never replaces a newer one.
        phase: Flyte's number of it.
        attempts: Number of attempts of the root.
        cache_status: Flyte's number of it.
        started: When it left the queue.
        ended: When it was over.
        updated: When this was recorded.
        failure: Why it failed.
        abort_reason: Why it was aborted.
        aborted_by: Who did that.
    """

    create_revision: int = 0
    revision: int = 0
    phase: int = 0
    attempts: int = 0
    cache_status: int = 0
    started: datetime | None = None
    ended: datetime | None = None
    updated: datetime | None = None
    failure: Failure | None = None
    abort_reason: str = ""
    aborted_by: str = ""


class RunRecord(_Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A run: what was asked for, and how it went.

    Attributes:
        form: Of the stored bytes.
        org: As the client that created it names its organisation.
        request_digest: Of the request that created it: the same one again is no conflict.
        run_spec: Flyte's ``task.RunSpec``.
        task: Which task the root is.
        short_name: Of the task, for people.
        environment: The task's environment.
        task_type: The task's type.
        source: Flyte's number of who asked for it.
        created: When.
        creator: Whose token asked for it; empty without one.
        labels: Of the run.
        input_uri: Where its inputs are.
        inputs_hash: Tells one set of inputs from another.
        output_base: What its actions' outputs are below.
        recovered_from: The run whose successes it takes over.
        status: How it goes; None until that was recorded.
    """

    form: int = FORM
    org: str = ""
    project: str
    domain: str
    name: str
    request_digest: str = ""
    run_spec: bytes = b""
    task: TaskName = TaskName()
    short_name: str = ""
    environment: str = ""
    task_type: str = ""
    source: int = 0
    created: datetime
    creator: str = ""
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    input_uri: str = ""
    inputs_hash: str = ""
    output_base: str = ""
    recovered_from: str = ""
    status: RunStatus | None = None


class Transition(_Struct, frozen=True, omit_defaults=True):
    """When an attempt entered a phase, and when it left it."""

    phase: int
    started: datetime
    ended: datetime | None = None


class Attempt(_Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How one attempt of an action went.

    Attributes:
        number: Which one, from 1 on.
        phase: Flyte's number of it. One that another followed FAILED.
        transitions: The phases that it went through.
        failure: Why it failed; None where nobody said.
        output_uri: The directory of its outputs.
        cache_status: Flyte's number of it.
        has_log: Whether it had a process, and so a log somewhere.
    """

    number: int
    phase: int = 0
    transitions: tuple[Transition, ...] = ()
    failure: Failure | None = None
    output_uri: str = ""
    cache_status: int = 0
    has_log: bool = False


class ActionHistory(_Struct, frozen=True, omit_defaults=True, kw_only=True):
    """All attempts of one incarnation of an action, the oldest first.

    Attributes:
        form: Of the stored bytes.
        run: Of which run it is; the key alone does not say where its name ends.
        name: The action's name.
        parent: The parent action's name; empty for a root.
        kind: ``task`` or ``condition``.
        short_name: Of the task, for people.
        task_type: The task's type.
        uid: ``metadata.uid`` of its object.
        create_revision: Of its object's key: which incarnation.
        revision: Which state of it: an older one never replaces a newer one.
        attempts: How each went.
    """

    form: int = FORM
    org: str = ""
    project: str = ""
    domain: str = ""
    run: str = ""
    name: str = ""
    parent: str = ""
    kind: str = ""
    short_name: str = ""
    task_type: str = ""
    uid: str = ""
    create_revision: int = 0
    revision: int = 0
    attempts: tuple[Attempt, ...] = ()


class LaterForm(DecodeError):
    """A later version wrote it: this one must not write over it."""


_T = TypeVar("_T", RunRecord, ActionHistory)

_encoder = msgspec.json.Encoder()
_record = msgspec.json.Decoder(RunRecord)
_history = msgspec.json.Decoder(ActionHistory)


def encode(value: RunRecord | ActionHistory) -> bytes:
    """The stored bytes."""
    return _encoder.encode(value)


def decode_record(data: bytes) -> RunRecord:
    """Read a run's record.

    Raises:
        DecodeError: It is none, or one of a later version.
    """
    return _checked(_record, data)


def decode_history(data: bytes) -> ActionHistory:
    """Read an action's history.

    Raises:
        DecodeError: It is none, or one of a later version.
    """
    return _checked(_history, data)


def _checked(decoder: msgspec.json.Decoder[_T], data: bytes) -> _T:
    try:
        value = decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise DecodeError(f"no {decoder.type.__name__}: {error}") from None
    if value.form != FORM:
        raise LaterForm(f"a {decoder.type.__name__} of form {value.form}, not {FORM}")
    return value
