"""Dead letters: calls that the run service rejected for good, kept in etcd until it accepts them.

Each action and call has a key of its own. The leader writes it before the mark, so a marked action
has a record in the run service or a dead letter. An operator lists dead letters, requests another
report, or deletes one, from any process. The leader watches these keys and repeats the calls.
"""

from etcd_actions.dead_letters.dead_letter import DeadLetter, read_dead_letters
from etcd_actions.dead_letters.dead_letter_store import DeadLetterStatistics, DeadLetterStore
from etcd_actions.dead_letters.operations import DeadLetterOperations

__all__ = [
    "DeadLetter",
    "DeadLetterOperations",
    "DeadLetterStatistics",
    "DeadLetterStore",
    "read_dead_letters",
]
