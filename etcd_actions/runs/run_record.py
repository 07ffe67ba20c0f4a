"""The stored form of a run's record, and of the history of an action; no I/O.

A run's record is written in the transaction that creates its root; the leader writes its status.
Lists show it, also when the objects of the run have expired. The history of an action has the
outcome of each attempt, of which the object has only the last one.

Values are JSON. A rewrite loses unknown fields, so a later version has another ``form``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final

import msgspec

from etcd_actions.storage.stored_form import StoredForm

FORM: Final = 1

ANONYMOUS: Final = "anonymous"
"""The subject of a client without a token, or with a token without a name.

Records omit it; lists filter by it as by any other name.
"""

_Struct = msgspec.Struct


class TaskName(_Struct, frozen=True, omit_defaults=True):
    """The name and version of the task of a root; a task that was not deployed has them, too."""

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
    """The status of a run: the last recorded state of its root.

    Attributes:
        create_revision: The incarnation of the root.
        revision: The revision of the state: an older one never replaces a newer one.
        phase: Flyte's number of the phase.
        attempts: Number of attempts of the root.
        cache_status: Flyte's number of the cache status.
        started: When the root left the queue.
        ended: When it became terminal.
        updated: When the status was recorded.
        aborted_by: The subject that aborted it.
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
    """A run: the request, and its status.

    Attributes:
        org: The organisation, as the client that created it names it.
        request_digest: The digest of the request that created it: its repetition is not a conflict.
        run_spec: Flyte's ``task.RunSpec``.
        task: The task of the root.
        short_name: The task's name for display.
        environment: The name of the task's environment.
        source: Flyte's number of the source of the request.
        creator: The subject of the token that created it; empty without one.
        input_uri: The URI of its inputs.
        inputs_hash: A hash of the inputs.
        output_base: The URI below which its actions' outputs are.
        recovered_from: The run whose successes it reuses.
        status: Its status; None until one was recorded.
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
    """A phase of an attempt: when it was entered, and when it was left."""

    phase: int
    started: datetime
    ended: datetime | None = None


class Attempt(_Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One attempt of an action.

    Attributes:
        number: Its number, from 1 on.
        phase: Flyte's number of its phase; FAILED if another attempt followed.
        transitions: The phases that it had.
        failure: Why it failed; None if unknown.
        output_uri: The directory of its outputs.
        cache_status: Flyte's number of the cache status.
        has_log: Whether it had a process, and so a log.
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
        run: Its run; the key alone does not show where the name of the run ends.
        name: The action's name.
        parent: The parent action's name; empty for a root.
        kind: ``task`` or ``condition``.
        short_name: The task's name for display.
        uid: ``metadata.uid`` of its object.
        create_revision: The incarnation of its object.
        revision: The revision of the state: an older one never replaces a newer one.
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


encode: Final[Callable[[RunRecord | ActionHistory], bytes]] = msgspec.json.Encoder().encode
"""Returns the stored bytes."""

decode_record: Final = StoredForm(RunRecord, "RunRecord").decode
"""Decodes a run's record; raises DecodeError, or LaterForm for one of a later version."""

decode_history: Final = StoredForm(ActionHistory, "ActionHistory").decode
"""Decodes an action's history; raises as `decode_record`."""
