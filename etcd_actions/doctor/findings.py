"""Findings: a severity, a stable id, the facts, and the remedy."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from etcd_actions.etcd.endpoints import Endpoint


class Severity(enum.IntEnum):
    """The severity of a finding."""

    OK = 0
    """No action is needed."""
    NOTE = 1
    """Information; etcd-actions works."""
    WARNING = 2
    """etcd-actions works, and can fail or lose reports after a further failure."""
    ERROR = 3
    """etcd-actions cannot do its work, or can lose reports."""

    @property
    def label(self) -> str:
        """Its name for people and programs."""
        return self.name.lower()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One result of the examination.

    Attributes:
        severity: ``ok``, ``note``, ``warning`` or ``error``.
        id: Identifies its kind; it never changes.
        subject: The endpoints that it is about, separated by commas; empty for the cluster.
        members: These endpoints as a list.
        seen: The facts, with figures.
        meaning: Their consequence; empty if it is ``ok``.
        remedy: The remedy, with a command if there is one; empty if nothing has to be done.
    """

    severity: str
    id: str
    subject: str
    seen: str
    meaning: str
    remedy: str
    members: tuple[str, ...] = ()

    @property
    def rank(self) -> Severity:
        """The severity, to compare."""
        return Severity[self.severity.upper()]


@dataclass(frozen=True)
class Kind:
    """A kind of finding. A finding replaces each ``<name>`` in the remedy by its own value."""

    severity: Severity
    id: str
    meaning: str = ""
    remedy: str = ""

    @classmethod
    def ok(cls, id_: str) -> Kind:
        """A kind that needs no action."""
        return cls(Severity.OK, id_)

    @classmethod
    def note(cls, id_: str, meaning: str, remedy: str) -> Kind:
        """A kind of :attr:`Severity.NOTE`."""
        return cls(Severity.NOTE, id_, meaning, remedy)

    @classmethod
    def warning(cls, id_: str, meaning: str, remedy: str) -> Kind:
        """A kind of :attr:`Severity.WARNING`."""
        return cls(Severity.WARNING, id_, meaning, remedy)

    @classmethod
    def error(cls, id_: str, meaning: str, remedy: str) -> Kind:
        """A kind of :attr:`Severity.ERROR`."""
        return cls(Severity.ERROR, id_, meaning, remedy)

    def found(self, seen: str, *, subject: Endpoint | str = "", **values: object) -> Finding:
        """Make a finding of this kind.

        Args:
            seen: The facts.
            subject: The endpoint that it is about; replaces ``<endpoint>``, ``<host>``, ``<port>``.
            **values: Replace ``<name>`` in the remedy; between ``'`` they are quoted for a shell,
                since remedies are copied.
        """
        if isinstance(subject, Endpoint):
            values |= {"endpoint": subject, "host": subject.host, "port": subject.port}

        def filled(place: re.Match[str]) -> str:
            if place["name"] not in values:
                return place[0]
            value = str(values[place["name"]])
            return "'" + value.replace("'", r"'\''") + "'" if place["quote"] else value

        # In one pass: a `<name>` within a value is kept.
        remedy = re.sub(r"(?P<quote>')?<(?P<name>\w+)>(?(quote)')", filled, self.remedy)
        return Finding(
            severity=self.severity.label,
            id=self.id,
            subject=str(subject),
            seen=seen,
            meaning=self.meaning,
            remedy=remedy,
            members=(str(subject),) if subject else (),
        )


def worst(findings: Iterable[Finding]) -> Severity:
    """The severity of the worst finding; :attr:`Severity.OK` without any."""
    return max((finding.rank for finding in findings), default=Severity.OK)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by severity; those of one severity stay in their order."""
    return sorted(findings, key=lambda finding: -finding.rank)


def once(findings: Iterable[Finding]) -> list[Finding]:
    """Each kind of finding about members once, with all members that have it."""
    merged: dict[str, list[Finding]] = {}
    for finding in findings:
        # Those about the cluster stay as they are: two of a kind are two facts.
        key = finding.id if finding.members else f"{finding.id} {len(merged)}"
        merged.setdefault(key, []).append(finding)
    return [_merged(group) for group in merged.values()]


def _merged(group: list[Finding]) -> Finding:
    first, *others = group
    if not others:
        return first
    seen = first.seen
    if any(each.seen != seen for each in others):
        seen = "; ".join(f"{each.subject}: {each.seen}" for each in group)
    remedy = first.remedy
    if any(each.remedy != remedy for each in others):
        remedy += f" (and the same for {', '.join(each.subject for each in others)})"
    members = tuple(dict.fromkeys(member for each in group for member in each.members))
    return msgspec.structs.replace(
        first, subject=", ".join(members), seen=seen, remedy=remedy, members=members
    )
