"""What an examination finds: a severity, a stable id, what was seen, and what to do."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec


class Severity(enum.IntEnum):
    """How bad a finding is."""

    OK = 0
    """As it should be."""
    NOTE = 1
    """Good to know."""
    WARNING = 2
    """It works, and can fail or lose something when more goes wrong."""
    ERROR = 3
    """etcd-actions cannot do its work, or what it is told can be lost."""

    @property
    def label(self) -> str:
        """Its name for people and programs."""
        return self.name.lower()


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was found.

    Attributes:
        severity: ``ok``, ``note``, ``warning`` or ``error``.
        id: What kind it is; stays the same from release to release.
        subject: The endpoint that it is about; empty for the cluster as a whole.
        seen: What was seen, with figures.
        meaning: What that means; empty where all is well.
        remedy: What to do, a command where there is one; empty where nothing is to be done.
    """

    severity: str
    id: str
    subject: str
    seen: str
    meaning: str
    remedy: str

    @property
    def rank(self) -> Severity:
        """The severity, to compare."""
        return Severity[self.severity.upper()]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of finding. ``<name>`` in the remedy stands for what a finding fills in."""

    id: str
    severity: Severity
    meaning: str = ""
    remedy: str = ""

    def found(self, seen: str, *, subject: object = "", **values: object) -> Finding:
        """Make a finding of this kind.

        Args:
            seen: What was seen.
            subject: The endpoint that it is about.
            **values: What the remedy's ``<name>`` stand for; between ``'`` they are quoted as
                a shell wants it, since remedies are copied.
        """

        def filled(place: re.Match[str]) -> str:
            if place["name"] not in values:
                return place[0]
            value = str(values[place["name"]])
            return "'" + value.replace("'", r"'\''") + "'" if place["quote"] else value

        # In one pass: what a value holds is no place.
        remedy = re.sub(r"(?P<quote>')?<(?P<name>\w+)>(?(quote)')", filled, self.remedy)
        return Finding(
            severity=self.severity.label,
            id=self.id,
            subject=str(subject),
            seen=seen,
            meaning=self.meaning,
            remedy=remedy,
        )


def worst(findings: Iterable[Finding]) -> Severity:
    """The severity of the worst finding; :attr:`Severity.OK` where there is none."""
    return max((finding.rank for finding in findings), default=Severity.OK)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by severity; those of one severity stay in their order."""
    return sorted(findings, key=lambda finding: -finding.rank)
