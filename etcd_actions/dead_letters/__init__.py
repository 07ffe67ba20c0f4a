"""Dead letters: what the run service refused for good, kept in etcd until it is accepted.

One key for each action and call, below our own prefix. The leader writes them before
it marks, so that no ending is marked that the run service neither has a record of, nor
somebody a letter about. An operator lists them, asks for another try, or gives up on one, from
any process; the leader follows these keys and offers again what it is asked to.
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
