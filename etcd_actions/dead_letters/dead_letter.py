"""The fields of a dead letter, and its stored form. No I/O.

A key is ``<own>dead-letters/actions/<namespace>/<name>/<what>/<digest>`` for the object of a task
or a condition; for that of a trace ``actions`` is replaced by ``traces``. The digest is of the
action's identity: two actions whose objects have the same key, one after the other, have a
dead letter each. The value is JSON, so that people can read it with etcdctl. Only the state, for a
repeated report after the object is deleted, is compressed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Final, NamedTuple

import msgspec

from etcd_actions._internal.containment import describe
from etcd_actions.errors import DecodeError
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import ActionId, ActionUpdate, Keyspace, Phase

RECORD: Final = "record"
STATUS: Final = "status"
CALLS: Final = (RECORD, STATUS)

_LONGEST_ERROR: Final = 2_000
_LONGEST_NAME: Final = 500
"""Characters; no name in Kubernetes is longer."""
_LARGEST_STATE: Final = 24 * 1024
"""The most bytes of a compressed state: a dead letter with it is smaller than 48 KiB."""
_LARGEST_UNPACKED: Final = 16 * 1024 * 1024

_Revision = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Number = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]


class Request(msgspec.Struct, rename="camel", frozen=True):
    """A request for another report."""

    id: str
    at: str
    """RFC 3339."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the run service rejected for good.

    If the value cannot be decoded, the fields with a default have that.

    Attributes:
        dead_letter_key: The key of the dead letter itself.
        dead_letter_revision: ``mod_revision`` of that key.
        dead_letter_created: ``create_revision`` of that key: the lowest is the oldest one.
        size: Bytes of key and value.
        key: The key of the action's object.
        what: ``record`` or ``status``.
        unreadable: Why the value cannot be decoded; empty if it can.
        action_id: The action; all parts are empty if it is not known.
        uid: The uid of the object.
        create_revision: The object's ``create_revision``; another one is a re-created object.
        revision: ``mod_revision`` of the state that is reported again if the object is deleted.
        phase: The phase of that state.
        attempts: The attempts of that state.
        is_deleted: Whether the object was deleted.
        code: A number of ``google.rpc.Code``.
        error: The run service's message, at most 2,000 characters.
        first: When the call was rejected first, RFC 3339 in UTC, by the writer's clock.
        last: When it was rejected last.
        times: How often it was rejected.
        request: The request for another report that is not answered yet; None without one.
        answered: The id of the last request that was answered.
        note: Why a requested report could not be made.
        keeps: ``state`` if it has the state, ``object`` if it has the object, too; else empty.
    """

    dead_letter_key: bytes
    dead_letter_revision: int
    dead_letter_created: int
    size: int
    key: bytes = b""
    what: str = ""
    unreadable: str = ""
    action_id: ActionId = ActionId("", "", "", "")
    uid: str = ""
    create_revision: int = 0
    revision: int = 0
    phase: Phase = Phase.UNSPECIFIED
    attempts: int = 0
    is_deleted: bool = False
    code: int = 0
    error: str = ""
    first: str = ""
    last: str = ""
    times: int = 0
    request: Request | None = None
    answered: str = ""
    note: str = ""
    keeps: str = ""

    @property
    def namespace_and_name(self) -> str:
        """The end of the object's key."""
        return "/".join(self.key.decode(errors="backslashreplace").rsplit("/", 2)[-2:])


class LastReport(NamedTuple):
    """The report to repeat for a deleted object; ``value`` is None if it was too large."""

    update: ActionUpdate
    value: bytes | None


class StoredDeadLetter(
    msgspec.Struct, rename="camel", frozen=True, kw_only=True, omit_defaults=True, gc=False
):
    """The value of a dead letter's key."""

    object_key: str
    """The object's key for people; the exact one is in the dead letter's key."""
    project: str
    domain: str
    run: str
    action: str
    org: str = ""
    uid: str = ""
    create_revision: _Revision = 0
    revision: _Revision = 0
    phase: str = ""
    attempts: _Number = 0
    deleted: bool = False
    code: _Number
    error: str
    first: str
    last: str
    times: Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
    request: Request | None = None
    answered: str = ""
    note: str = ""
    keeps: str = ""
    state: bytes = b""


class DeadLetterKeys:
    """The keys of the dead letters about the objects of one keyspace.

    Args:
        keys: The keyspace.
    """

    def __init__(self, keys: Keyspace) -> None:
        self.prefix: bytes = keys.dead_letters
        self._roots = ((b"actions/", keys.prefix), (b"traces/", keys.traces))

    def key(self, object_key: bytes, action_id: ActionId, what: str) -> bytes:
        """The key of the dead letter about a call.

        Raises:
            ValueError: The object is not below the prefix.
        """
        return self.of_object(object_key) + f"{what}/{_digest(action_id)}".encode()

    def of_object(self, object_key: bytes) -> bytes:
        """The prefix of the keys of all dead letters about an object.

        Raises:
            ValueError: The object is not below the prefix.
        """
        for name, root in self._roots:
            if object_key.startswith(root):
                return self.prefix + name + object_key[len(root) :] + b"/"
        raise ValueError(f"{object_key!r} is not below the prefix")

    def parse(self, dead_letter_key: bytes) -> tuple[bytes, str]:
        """The object's key, and the call, in the key of a dead letter.

        Raises:
            DecodeError: It is not the key of a dead letter.
        """
        place, *end = dead_letter_key.removeprefix(self.prefix).rsplit(b"/", 2)
        for name, root in self._roots:
            if place.startswith(name) and len(end) == 2 and end[0].decode("latin-1") in CALLS:
                return root + place[len(name) :], end[0].decode()
        raise DecodeError("its key is not a dead letter's", key=dead_letter_key)


def read(keys: DeadLetterKeys, kv: KeyValue) -> DeadLetter:
    """Decode a dead letter. It never fails: ``unreadable`` is set if the value is unusable."""
    dead_letter = DeadLetter(
        dead_letter_key=kv.key,
        dead_letter_revision=kv.mod_revision,
        dead_letter_created=kv.create_revision,
        size=len(kv.key) + len(kv.value),
    )
    try:
        object_key, what = keys.parse(kv.key)
        dead_letter = msgspec.structs.replace(dead_letter, key=object_key, what=what)
        stored = decode(kv)
        return msgspec.structs.replace(
            dead_letter,
            action_id=ActionId(
                stored.project, stored.domain, stored.run, stored.action, stored.org
            ),
            uid=stored.uid,
            create_revision=stored.create_revision,
            revision=stored.revision,
            phase=Phase[stored.phase or Phase.UNSPECIFIED.name],
            attempts=stored.attempts,
            is_deleted=stored.deleted,
            code=stored.code,
            error=_clipped(stored.error, _LONGEST_ERROR + 4),
            first=stored.first,
            last=stored.last,
            times=stored.times,
            request=stored.request,
            answered=stored.answered,
            note=_clipped(stored.note, _LONGEST_ERROR + 4),
            keeps=stored.keeps,
        )
    except (DecodeError, KeyError) as error:
        reason = error.reason if isinstance(error, DecodeError) else f"no phase: {error}"
        return msgspec.structs.replace(dead_letter, unreadable=reason)


def read_dead_letters(keys: Keyspace, kvs: Iterable[KeyValue]) -> list[DeadLetter]:
    """Decode dead letters, also unusable ones."""
    dead_letters = DeadLetterKeys(keys)
    return [read(dead_letters, kv) for kv in kvs]


def rejection(
    update: ActionUpdate,
    last: LastReport | None,
    *,
    code: int,
    error: str,
    before: DeadLetter | None,
) -> StoredDeadLetter:
    """The dead letter about a call that was rejected now.

    Args:
        update: The state that was rejected.
        last: The report to keep; None for none.
        code: A number of ``google.rpc.Code``.
        error: The run service's message.
        before: The dead letter about the same call of the same incarnation; None without one.
    """
    now = timestamp()
    named = update.action_id
    request = before.request if before is not None else None
    state, keeps = _packed(last)
    return StoredDeadLetter(
        object_key=_clipped(update.key.decode(errors="backslashreplace")),
        project=_clipped(named.project),
        domain=_clipped(named.domain),
        run=_clipped(named.run),
        action=_clipped(named.name),
        org=_clipped(named.org),
        uid=_clipped(update.uid),
        create_revision=update.create_revision,
        revision=update.revision,
        phase=update.phase.name,
        attempts=_bounded(update.attempts),
        deleted=update.is_deleted,
        code=code if -(2**31) <= code < 2**31 else 0,
        error=_clipped(error, _LONGEST_ERROR),
        first=now if before is None else before.first,
        last=now,
        times=1 if before is None else before.times + 1,
        # The rejection is the answer to the request.
        answered=request.id if request is not None else before.answered if before else "",
        state=state,
        keeps=keeps,
    )


def with_state(
    stored: StoredDeadLetter, update: ActionUpdate, last: LastReport
) -> StoredDeadLetter:
    """The dead letter with a later state of the same incarnation."""
    state, keeps = _packed(last)
    return msgspec.structs.replace(
        stored,
        revision=update.revision,
        phase=update.phase.name,
        attempts=_bounded(update.attempts),
        deleted=update.is_deleted,
        state=state,
        keeps=keeps,
    )


def with_request(stored: StoredDeadLetter, request: Request) -> StoredDeadLetter:
    """The dead letter with a request for another report."""
    return msgspec.structs.replace(stored, request=request, note="")


def without_request(stored: StoredDeadLetter, note: str) -> StoredDeadLetter:
    """The dead letter with its request answered: the report could not be made."""
    answered = stored.request.id if stored.request is not None else stored.answered
    note = _clipped(note, _LONGEST_ERROR)
    return msgspec.structs.replace(stored, request=None, answered=answered, note=note)


def encode(stored: StoredDeadLetter) -> bytes:
    """The value of the key."""
    return msgspec.json.encode(stored)


def decode(kv: KeyValue) -> StoredDeadLetter:
    """Decode the value of a key.

    Raises:
        DecodeError: It is not a dead letter.
    """
    try:
        return msgspec.json.decode(kv.value, type=StoredDeadLetter)
    except Exception as error:
        # Any client may have written the key: a value nested too deeply, for example.
        raise DecodeError(describe(error), key=kv.key, revision=kv.mod_revision) from error


def is_about(dead_letter: DeadLetter, update: ActionUpdate) -> bool:
    """Whether a dead letter is about this incarnation of an action, and is usable."""
    named = (_clipped(update.uid), update.create_revision)
    return not dead_letter.unreadable and (dead_letter.uid, dead_letter.create_revision) == named


def last_report_of(stored: StoredDeadLetter) -> LastReport | None:
    """The report that a dead letter keeps; None for none.

    Raises:
        DecodeError: It cannot be decoded.
    """
    if not stored.state:
        return None
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(stored.state, _LARGEST_UNPACKED)
        if unpacker.eof:
            return msgspec.msgpack.decode(unpacked, type=LastReport)
    except Exception as error:
        raise DecodeError(
            f"the state that a dead letter keeps cannot be read: {describe(error)}"
        ) from error
    raise DecodeError("the state that a dead letter keeps is truncated, or too large")


def timestamp() -> str:
    """The present time, RFC 3339 in UTC, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _packed(last: LastReport | None) -> tuple[bytes, str]:
    """The compressed state, with the object if both are small enough; and the field ``keeps``."""
    if last is None:
        return b"", ""
    # The error is not reported, and may be long.
    update = msgspec.structs.replace(last.update, error=None)
    for value, keeps in ((last.value, "object"), (None, "state")):
        if value is None and keeps == "object":
            continue
        try:
            packed = zlib.compress(msgspec.msgpack.encode(LastReport(update, value)))
        except (OverflowError, ValueError):
            # It has a number or a text that a message of Flyte cannot have either.
            break
        if len(packed) <= _LARGEST_STATE:
            return packed, keeps
    return b"", ""


def _digest(action_id: ActionId) -> str:
    parts = (action_id.org, action_id.project, action_id.domain, action_id.run, action_id.name)
    text = "\0".join(parts).encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).hexdigest()


def _bounded(number: int) -> int:
    return max(-(2**31), min(number, 2**31 - 1))


def _clipped(text: str, longest: int = _LONGEST_NAME) -> str:
    """A text from outside, truncated, and without characters that cannot be stored."""
    text = text.encode(errors="backslashreplace").decode()
    return text if len(text) <= longest else text[:longest] + " ..."
