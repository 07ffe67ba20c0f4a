"""What a version of etcd is known to do wrong, so that nobody has to find out again."""

from __future__ import annotations

import re
from typing import NamedTuple

_PATTERN = re.compile(r"v?(\d+)\.(\d+)\.(\d+)(?:[-+].*)?", re.ASCII)


class EtcdVersion(NamedTuple):
    """A version of etcd; compares by its three numbers."""

    major: int
    minor: int
    patch: int

    @classmethod
    def parse(cls, text: str) -> EtcdVersion:
        """Read ``3.4.23``; a leading ``v`` and a suffix such as ``-rc.1`` are dropped.

        Raises:
            ValueError: ``text`` is not three numbers.
        """
        match = _PATTERN.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text!r} is no version of etcd, such as 3.5.21")
        return cls(*map(int, match.groups()))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"


def loses_writes_when_killed(version: EtcdVersion) -> bool:
    """Whether a lone member of this version can forget an acknowledged write when killed.

    3.5.0 to 3.5.5 apply a write and record it as applied in two steps (etcd issue 13766);
    a single member below 3.4.22 acknowledges before its log is on disk.
    """
    return version < (3, 4, 22) or (3, 5, 0) <= version < (3, 5, 6)


def has_reliable_progress(version: EtcdVersion) -> bool:
    """Whether the answer to a progress request never runs ahead of undelivered events.

    Older versions may name a revision whose events a slow watcher has yet to be sent, so
    a watch that resumes from there has a gap.
    """
    return (3, 4, 25) <= version < (3, 5, 0) or version >= (3, 5, 8)
