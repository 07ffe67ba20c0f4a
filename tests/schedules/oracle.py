"""Whether what was told, marked, answered and read agrees with etcd's own history.

Pure functions over lists. Each returns what is wrong, as violations whose kind is one fixed
word, so that the tests of the oracle can plant a lie and name what they expect.

What must hold in the end, once all is quiet, is separate from what must hold always: the first
is looked at again and again until it holds, or patience ends.
"""

from __future__ import annotations

from tests.schedules import always as always_
from tests.schedules import endings, final, letters
from tests.schedules.evidence import Evidence, Violation

__all__ = ["Evidence", "Violation", "always", "finally_"]


def always(evidence: Evidence) -> list[Violation]:
    """What is wrong, whenever it is looked at, with what has happened so far."""
    return [
        found
        for check in (*always_.CHECKS, *endings.CHECKS, *letters.ALWAYS)
        for found in check(evidence)
    ]


def finally_(evidence: Evidence) -> list[Violation]:
    """What is wrong with the end; before all is quiet it may be only unfinished."""
    return [found for check in (*final.CHECKS, *letters.FINALLY) for found in check(evidence)]
