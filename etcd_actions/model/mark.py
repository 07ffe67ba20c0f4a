"""The mark of a recorded terminal state: which state it names, and whether it still counts.

Flyte's label ``flyte.org/terminal-status-recorded`` means that the run service accepted *a*
terminal state. The label stays when another process overwrites that state. So this package writes
an annotation with the label, which identifies the accepted state::

    etcd-actions.io/recorded: SUCCEEDED/2 4711 0f1e2d3c4b5a6978 8796a5b4c3d2e1f0

Its parts are phase and attempt; the key's ``create_revision``, 0 if it was not known; a digest of
the action's identity and uid; and, if there is any, a digest of error, signal and a trace's
output. A task's output location is not in it: run and attempt determine it.

`read_state` has the rules for the state of an object with the label.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import Final, NamedTuple, Protocol

import msgspec

from etcd_actions.model.phase import Phase

NOTHING: Final = "none"
"""Written instead of a mark if the label was there before any terminal state: it names none."""

_DIGEST: Final = 8
_BY_NAME: Final = {phase.name: phase for phase in Phase if phase.is_terminal}
_encode = msgspec.msgpack.Encoder().encode


class State(NamedTuple):
    """The state of an action, by its object.

    Attributes:
        phase: The phase.
        attempts: The attempt, as stored: 0 if it was not counted.
        recorded: Whether the run service accepted exactly this terminal state.
        outdated: Whether the stored status is older than the recorded terminal state. Then
            `phase` and `attempts` are those of the recorded state.
        stray: Whether the object has the label without a terminal state, and `NOTHING` is not yet
            written.
        mark: The `mark_number` of its mark; 0 without one.
    """

    phase: Phase
    attempts: int
    recorded: bool
    outdated: bool = False
    stray: bool = False
    mark: int = 0


class ErrorLike(Protocol):
    """The fields of an error that the digest covers."""

    @property
    def code(self) -> str:
        """The error's name for programs."""

    @property
    def kind(self) -> str:
        """``USER`` or ``SYSTEM``."""

    @property
    def message(self) -> str:
        """For people."""

    @property
    def recoverable(self) -> bool | None:
        """Whether a retry may help; of traces only."""


def subject_digest(project: str, domain: str, run: str, action: str, uid: str) -> str:
    """A digest of the action's identity and of its object's uid."""
    return _digest((project, domain, run, action, uid))


def details_digest(error: ErrorLike | None, signal: str, output: str) -> str:
    """A digest of error, signal and output of a terminal state; empty if it has none of them.

    Args:
        error: The error of a failed action.
        signal: Base64 of the value of a condition.
        output: The directory of a trace's output; empty for other actions.
    """
    if error is None and not signal and not output:
        return ""
    fields = error and (error.code, error.kind, error.message, error.recoverable)
    return _digest((fields, signal, output))


def mark_text(phase: Phase, attempts: int, create_revision: int, subject: str, details: str) -> str:
    """Write the annotation's value.

    Args:
        phase: The terminal phase.
        attempts: The attempt; 0, not counted, is the first.
        create_revision: The ``create_revision`` of the key, 0 if it is not known.
        subject: The result of `subject_digest`.
        details: The result of `details_digest`.
    """
    text = f"{phase.name}/{max(attempts, 1)} {create_revision} {subject}"
    return f"{text} {details}" if details else text


def read_state(
    mark: str | None,
    phase: Phase,
    attempts: int,
    create_revision: int,
    subject: str,
    details: str,
) -> State:
    """The state of an object with the label.

    - Without the annotation (Flyte's own service writes none) the label counts on any terminal
      state. On another state it is *stray*.
    - A terminal state is recorded if the annotation names exactly this state.
    - A state that is not terminal, in the recorded attempt or an earlier one of the same
      incarnation, is *outdated*: a process wrote an older status back. The result is the
      recorded state.
    - A mark of an earlier attempt, another incarnation or another action does not count, nor does
      an annotation that cannot be parsed: a second report of one state does no harm.

    Args:
        mark: The annotation; None if there is none.
        phase: The phase of the conditions.
        attempts: The attempt in the status.
        create_revision: The ``create_revision`` of the key; 0, not known, fits any mark.
        subject: The result of `subject_digest`.
        details: The result of `details_digest`.
    """
    if mark is None:
        return State(phase, attempts, phase.is_terminal, stray=not phase.is_terminal)
    number = mark_number(mark)
    if phase.is_terminal and mark == mark_text(phase, attempts, create_revision, subject, details):
        return State(phase, attempts, True, mark=number)
    stored = _parse(mark)
    if (
        stored is None
        or stored.subject != subject
        or (create_revision and stored.create_revision not in (0, create_revision))
    ):
        return State(phase, attempts, False, mark=number)
    attempt = max(attempts, 1)
    if phase.is_terminal:
        same = (stored.phase, stored.attempts, stored.details) == (phase, attempt, details)
        return State(phase, attempts, same, mark=number)
    if attempt > stored.attempts:
        return State(phase, attempts, False, mark=number)
    return State(stored.phase, stored.attempts, True, outdated=True, mark=number)


def mark_number(mark: str) -> int:
    """A number of 32 bits that distinguishes marks of one key."""
    return zlib.crc32(mark.encode())


class _Mark(NamedTuple):
    phase: Phase
    attempts: int
    create_revision: int
    subject: str
    details: str


def _parse(text: str) -> _Mark | None:
    """A stored mark; None for anything that `mark_text` does not write."""
    ended, _, rest = text.partition(" ")
    name, _, attempts = ended.partition("/")
    revision, _, digests = rest.partition(" ")
    subject, _, details = digests.partition(" ")
    phase = _BY_NAME.get(name)
    # At most as many digits as the numbers have.
    if phase is None or len(attempts) > 10 or len(revision) > 19 or " " in details:
        return None
    try:
        mark = _Mark(phase, int(attempts), int(revision), subject, details)
    except ValueError:
        return None
    return mark if mark_text(*mark) == text else None


def _digest(parts: tuple[object, ...]) -> str:
    return hashlib.blake2b(_encode(parts), digest_size=_DIGEST).hexdigest()
