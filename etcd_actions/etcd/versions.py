"""The known bugs of each version of etcd.

The ranges are those of etcd's changelogs and of the track record of its robustness tests;
the numbers are those of the issues, or of the pull requests where there is no issue.
"""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import NamedTuple

_PATTERN = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:[-+].*)?", re.ASCII)


class EtcdVersion(NamedTuple):
    """A version of etcd; compares by its three numbers."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> EtcdVersion:
        """Parse ``3.4.23``; a leading ``v`` and a suffix such as ``-rc.1`` are dropped.

        Raises:
            ValueError: ``text`` is not three numbers.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is not a valid version of etcd, such as 3.5.21")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


class Effect(enum.Enum):
    """The kind of harm of a bug of etcd."""

    LOST_WRITES = "an acknowledged write can be lost when a member is killed"
    DIVERGENCE = "the members of a cluster can come to hold different data"
    WATCH = "a watch can miss, repeat or misorder events"
    PROGRESS = "the progress that a watch reports can be wrong"
    STALE_READ = "a linearizable read can be answered with old data"


@dataclass(frozen=True, kw_only=True)
class KnownBug:
    """One bug of etcd.

    Attributes:
        number: The issue, or pull request, of github.com/etcd-io/etcd.
        effect: The kind of harm.
        consequence: The consequence, in a line.
        affected: The versions that have it, from the first (included) to the one that fixes
            it (excluded), for each line of releases.
        averted: Whether etcd-actions works around it.
    """

    number: int
    effect: Effect
    consequence: str
    affected: tuple[tuple[EtcdVersion, EtcdVersion], ...]
    averted: bool = False

    @property
    def id(self) -> str:
        """Its name, such as ``etcd#13766``."""
        return f"etcd#{self.number}"

    def fixed_in(self, version: EtcdVersion) -> EtcdVersion | None:
        """The release with the fix for ``version``; None if ``version`` does not have the bug."""
        return next((fix for first, fix in self.affected if first <= version < fix), None)


def _until(*fixes: str) -> tuple[tuple[EtcdVersion, EtcdVersion], ...]:
    """Every version below the fix of its line, and all lines before the first one."""
    ends = [EtcdVersion.parse(fix) for fix in fixes]
    starts = [EtcdVersion(0, 0, 0), *(EtcdVersion(end.major, end.minor, 0) for end in ends[1:])]
    return tuple(zip(starts, ends, strict=True))


def _between(*ranges: str) -> tuple[tuple[EtcdVersion, EtcdVersion], ...]:
    """Ranges such as ``3.5.0 3.5.3``."""
    pairs = [each.split() for each in ranges]
    return tuple((EtcdVersion.parse(first), EtcdVersion.parse(fix)) for first, fix in pairs)


KNOWN_BUGS: tuple[KnownBug, ...] = (
    KnownBug(
        number=13766,
        effect=Effect.LOST_WRITES,
        consequence="killed under load, a member can forget writes and differ from the others",
        affected=_between("3.5.0 3.5.3"),
    ),
    KnownBug(
        number=14370,
        effect=Effect.LOST_WRITES,
        consequence="a lone member acknowledges a write before it is on disk",
        affected=_until("3.4.21", "3.5.5"),
    ),
    KnownBug(
        number=14685,
        effect=Effect.LOST_WRITES,
        consequence="killed during a defragmentation, a member comes back with other revisions",
        affected=_between("3.5.0 3.5.6"),
    ),
    KnownBug(
        number=14571,
        effect=Effect.DIVERGENCE,
        consequence="with users, a member that was restored from a snapshot can drop writes",
        affected=_until("3.4.22", "3.5.6"),
    ),
    KnownBug(
        number=20271,
        effect=Effect.DIVERGENCE,
        consequence="a defragmentation while a snapshot is received can corrupt the data",
        affected=_until("3.4.38", "3.5.23", "3.6.5"),
    ),
    KnownBug(
        number=15275,
        effect=Effect.WATCH,
        consequence="a watch can be sent events twice",
        affected=_until("3.4.24", "3.5.8"),
        averted=True,
    ),
    KnownBug(
        number=15271,
        effect=Effect.WATCH,
        consequence="after a network partition a watch can go back in time",
        affected=_until("3.4.25", "3.5.8"),
        averted=True,
    ),
    KnownBug(
        number=17529,
        effect=Effect.WATCH,
        consequence="a watch that lags behind a compaction can lose events without notice",
        affected=_until("3.4.31", "3.5.13"),
    ),
    KnownBug(
        number=17780,
        effect=Effect.WATCH,
        consequence="killed during a compaction, a member can come back at a lower revision",
        affected=_until("3.4.32", "3.5.14"),
    ),
    KnownBug(
        number=18089,
        effect=Effect.WATCH,
        consequence="a watch that resumes at a compacted deletion misses it",
        affected=_until("3.4.34", "3.5.16"),
        averted=True,
    ),
    KnownBug(
        number=19179,
        effect=Effect.WATCH,
        consequence="the same, where a member was restarted after the compaction",
        affected=_until("3.4.36", "3.5.18"),
        averted=True,
    ),
    KnownBug(
        number=20221,
        effect=Effect.WATCH,
        consequence="a watch from a revision that its member has yet to see can get older events",
        affected=_until("3.4.38", "3.5.22", "3.6.2"),
        averted=True,
    ),
    KnownBug(
        number=15220,
        effect=Effect.PROGRESS,
        consequence="the answer to a progress request can be ahead of events still to come",
        affected=_until("3.4.25", "3.5.8"),
        averted=True,
    ),
    KnownBug(
        number=17507,
        effect=Effect.PROGRESS,
        consequence="a watch that saw no event yet gets no progress at all",
        affected=_between("3.4.25 3.4.31", "3.5.8 3.5.13"),
        averted=True,
    ),
    KnownBug(
        number=20418,
        effect=Effect.STALE_READ,
        consequence="a member that was stopped for a while can answer a read with old data",
        affected=_until("3.4.42", "3.5.28", "3.6.9"),
    ),
)
"""The bugs that matter for watches and marks. Those of other parts of etcd are omitted."""

_PROGRESS_AHEAD = 15220


def known_bugs(version: EtcdVersion) -> tuple[KnownBug, ...]:
    """The known bugs that ``version`` has, the worst first."""
    return tuple(bug for bug in KNOWN_BUGS if bug.fixed_in(version) is not None)


def free_of_known_bugs(version: EtcdVersion) -> EtcdVersion:
    """The least upgrade that has none of the known bugs; ``version`` itself if it has none."""
    while fixes := [fix for bug in KNOWN_BUGS if (fix := bug.fixed_in(version)) is not None]:
        version = max(fixes)
    return version


def loses_writes_when_killed(version: EtcdVersion) -> bool:
    """Whether a lone member of this version can forget an acknowledged write when killed."""
    return any(bug.effect is Effect.LOST_WRITES for bug in known_bugs(version))


def has_reliable_progress(version: EtcdVersion) -> bool:
    """Whether the answer to a progress request comes after all events up to its revision.

    Older versions may answer with a revision whose events were not sent to a slow watcher yet. A
    watch that resumes there has a gap.
    """
    return all(bug.number != _PROGRESS_AHEAD for bug in known_bugs(version))
