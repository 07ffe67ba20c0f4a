"""Dead letters: what the run service refused for good, kept in etcd until it is accepted.

One key for each action and call, below our own prefix. The leader writes them before
it marks, so that no ending is marked that the run service neither has a record of, nor
somebody a letter about. An operator lists them, asks for another try, or gives up on one, from
any process; the leader follows these keys and offers again what it is asked to.
"""

from etcd_actions.dead_letters.book import DeadLetterStatistics, LetterBook
from etcd_actions.dead_letters.desk import LetterDesk
from etcd_actions.dead_letters.letter import DeadLetter, read_letters

__all__ = ["DeadLetter", "DeadLetterStatistics", "LetterBook", "LetterDesk", "read_letters"]
