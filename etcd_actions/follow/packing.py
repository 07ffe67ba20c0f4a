"""Packs the summary of an action into about 60 bytes, which are kept next to its name.

The compact form omits the texts that many actions share (project, domain, output location), the run
and the action, which are in the name, and stores a uid as its 16 bytes. A summary that does not fit
this form is stored in the complete one, by :func:`etcd_actions.model.pack`. Both forms begin with
the revision.
"""

from __future__ import annotations

import struct
from typing import Final

from etcd_actions.model import Phase, Summary, pack, task_action_name, unpack

_REVISION: Final = struct.Struct("<q")
# Revision, form, phase, flags, length of the run's name, number of the shared texts, attempts,
# create revision, cache status, mark, uid. The parent's name follows. If the uid is not a UUID, its
# text follows the parent's name, and the field of the uid has the length of the parent's name.
_COMPACT: Final = struct.Struct("<qBBBHIIqbI16s")
_COMPLETE: Final = b"\x00"
"""The form of a summary that is packed completely; the compact form is 1."""
_FORM: Final = _REVISION.size
_PHASE: Final = _FORM + 1
_FLAGS: Final = _PHASE + 1
_RUN_LENGTH: Final = slice(_FLAGS + 1, _FLAGS + 3)
_NUMBER: Final = struct.Struct("<I")
_NUMBER_AT: Final = _RUN_LENGTH.stop
_PARENT: Final = _COMPACT.size
_UID: Final = 36
_RAW_UID: Final = 16
_RAW: Final = _PARENT - _RAW_UID

_RECORDED, _DELETING, _HELD, _HELD_BY_OTHERS, _STRAY, _CONDITION, _TEXT = (
    1 << bit for bit in range(7)
)

_Texts = tuple[str, str, str, str, str, str, str | None]
"""Project, domain, organisation, version, pool, the output location before and after the run."""


class Packing:
    """Packs summaries. It has the shared texts, each as long as a packed summary uses it."""

    def __init__(self) -> None:
        self._numbers: dict[_Texts, int] = {}
        self._texts: list[_Texts] = []
        self._uses: list[int] = []
        self._free: list[int] = []
        # The texts of the last summary, and their source: the next one is mostly of the same run.
        self._last: tuple[str, ...] = ()
        self._last_texts: _Texts = ("", "", "", "", "", "", None)

    def pack(self, name: bytes, summary: Summary) -> bytes:
        """Pack the summary of the object of a name; call :meth:`release` when it is replaced."""
        run, uid = summary.run, summary.uid
        try:
            if f"{run}-{summary.action}".encode() != name:
                return self._pack_all(summary)
            parent = summary.parent.encode()
            raw, text = _raw_of(uid), None
            if raw is None:
                raw, text = len(parent).to_bytes(16, "little"), uid.encode()
            texts = self._texts_of(summary)
            number = self._numbers.get(texts)
            if number is None:
                number = self._free[-1] if self._free else len(self._texts)
            packed = _COMPACT.pack(
                summary.revision,
                1,
                summary.phase,
                summary.recorded * _RECORDED
                | summary.deleting * _DELETING
                | summary.held * _HELD
                | summary.held_by_others * _HELD_BY_OTHERS
                | summary.stray * _STRAY
                | summary.condition * _CONDITION
                | (text is not None) * _TEXT,
                len(run),
                number,
                summary.attempts,
                summary.create_revision,
                summary.cache_status,
                summary.mark,
                raw,
            )
            packed += parent + (text or b"")
        except (ValueError, struct.error):
            return self._pack_all(summary)
        if number < len(self._uses) and self._uses[number]:
            self._uses[number] += 1
        else:
            self._begin_use(texts, number)
        return packed

    def unpack(self, name: bytes, packed: bytes) -> Summary:
        """Unpack what :meth:`pack` made."""
        if not packed[_FORM]:
            return unpack(packed[_FORM + 1 :])
        (
            revision,
            _,
            phase,
            flags,
            length,
            number,
            attempts,
            create_revision,
            cache_status,
            mark,
            raw,
        ) = _COMPACT.unpack_from(packed)
        project, domain, org, version, pool, before, behind = self._texts[number]
        text = name.decode()
        run = text[:length]
        if flags & _TEXT:
            middle = _PARENT + int.from_bytes(raw, "little")
            parent, uid = packed[_PARENT:middle].decode(), packed[middle:].decode()
        else:
            parent, uid = packed[_PARENT:].decode(), _text_of(raw)
        return Summary(
            project,
            domain,
            run,
            text[length + 1 :],
            org,
            parent,
            uid,
            Phase(phase),
            attempts,
            cache_status,
            bool(flags & _RECORDED),
            before if behind is None else before + run + behind,
            create_revision,
            revision,
            bool(flags & _DELETING),
            bool(flags & _HELD),
            bool(flags & _HELD_BY_OTHERS),
            bool(flags & _STRAY),
            mark,
            bool(flags & _CONDITION),
            version,
            pool,
        )

    def queued_pool(self, packed: bytes) -> str | None:
        """The pool of an action that was not started; None of another one, and of a condition."""
        if packed[_FORM]:
            if packed[_PHASE] >= Phase.INITIALIZING or packed[_FLAGS] & _CONDITION:
                return None
            number: int = _NUMBER.unpack_from(packed, _NUMBER_AT)[0]
            return self._texts[number][4]
        summary = unpack(packed[_FORM + 1 :])
        is_queued = summary.phase < Phase.INITIALIZING and not summary.condition
        return summary.pool if is_queued else None

    def release(self, packed: bytes) -> None:
        """Count off the shared texts of a packed summary that is not used any more."""
        if not packed[_FORM]:
            return
        number = _COMPACT.unpack_from(packed)[5]
        self._uses[number] -= 1
        if not self._uses[number]:
            del self._numbers[self._texts[number]]
            self._free.append(number)

    def _texts_of(self, summary: Summary) -> _Texts:
        made_of = (
            summary.run,
            summary.run_output_base,
            summary.project,
            summary.domain,
            summary.org,
            summary.other_version,
            summary.pool,
        )
        if made_of != self._last:
            before, found, behind = summary.run_output_base.partition(summary.run)
            self._last_texts = (*made_of[2:], before, behind if found else None)
            self._last = made_of
        return self._last_texts

    def _begin_use(self, texts: _Texts, number: int) -> None:
        if number == len(self._texts):
            self._texts.append(texts)
            self._uses.append(0)
        if self._free and self._free[-1] == number:
            self._free.pop()
        self._texts[number] = texts
        self._numbers[texts] = number
        self._uses[number] = 1

    def _pack_all(self, summary: Summary) -> bytes:
        return _REVISION.pack(summary.revision) + _COMPLETE + pack(summary)


def revision_in(packed: bytes) -> int:
    """The revision of packed facts."""
    revision: int = _REVISION.unpack_from(packed)[0]
    return revision


def phase_in(packed: bytes) -> Phase:
    """The phase of packed facts."""
    if not packed[_FORM]:
        return unpack(packed[_FORM + 1 :]).phase
    return Phase(packed[_PHASE])


def run_of(name: bytes, packed: bytes) -> str:
    """The run of packed facts, which are those of the object of a name."""
    if not packed[_FORM]:
        return unpack(packed[_FORM + 1 :]).run
    return name.decode()[: int.from_bytes(packed[_RUN_LENGTH], "little")]


def have_one_parent(packed: bytes, other: bytes) -> bool:
    """Whether two packed summaries of one name have the same parent; False also if uids differ."""
    return (
        packed[_FORM] == other[_FORM] == 1
        and packed[_RUN_LENGTH] == other[_RUN_LENGTH]
        and packed[_FLAGS] & _TEXT == other[_FLAGS] & _TEXT
        and packed[_RAW:] == other[_RAW:]
    )


def parent_of(name: bytes, packed: bytes) -> bytes:
    """The name of the parent's object; empty for none."""
    if not packed[_FORM]:
        summary = unpack(packed[_FORM + 1 :])
        return parent_name(summary.run, summary.parent)
    end = len(packed)
    if packed[_FLAGS] & _TEXT:
        end = _PARENT + int.from_bytes(packed[_RAW:_PARENT], "little")
    return parent_name(run_of(name, packed), packed[_PARENT:end].decode())


def parent_name(run: str, parent: str) -> bytes:
    """The name of the object of an action's parent; empty for none."""
    return task_action_name(run, parent).encode(errors="replace") if parent else b""


def _raw_of(uid: str) -> bytes | None:
    """The 16 bytes of a uid; None if it is not in the usual form of a UUID."""
    if len(uid) != _UID or not uid[8] == uid[13] == uid[18] == uid[23] == "-":
        return None
    try:
        raw = bytes.fromhex(uid.replace("-", ""))
    except ValueError:
        return None
    # fromhex ignores spaces and accepts capitals, which _text_of would not restore.
    return raw if len(raw) == _RAW_UID and uid == uid.lower() else None


def _text_of(raw: bytes) -> str:
    text = raw.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
