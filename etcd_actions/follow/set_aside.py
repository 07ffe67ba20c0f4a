"""The values that cannot be decoded: counted, logged and listed until the next good write."""

from __future__ import annotations

from typing import Final

import structlog

from etcd_actions._internal.containment import Containment, describe
from etcd_actions.errors import DecodeError
from etcd_actions.storage.undecodable import Undecodable
from etcd_actions.watch import Change

_log: Final = structlog.get_logger(__name__)


class SetAside:
    """Shared by all who decode values.

    Args:
        containment: Where a decoder that fails unexpectedly is counted.

    Attributes:
        keys: Which keys hold such a value now, and why it cannot be decoded.
        count: Number of values that could not be decoded.
    """

    def __init__(self, containment: Containment) -> None:
        self._containment = containment
        self._doubtful: dict[bytes, Change] = {}
        self.keys = Undecodable()
        self.count = 0

    def __contains__(self, key: bytes) -> bool:
        """Whether a key holds such a value now."""
        return key in self.keys

    def add(self, change: Change, error: BaseException) -> None:
        """Set the value of a change aside.

        Args:
            change: The change; of a deletion it is the value that was there.
            error: Why it cannot be decoded.
        """
        key = change.key
        doubtful = not isinstance(error, DecodeError) or error.doubtful
        if isinstance(error, DecodeError):
            reason = error.reason
        else:
            text = key.decode(errors="backslashreplace")
            reason = describe(self._containment.caught("value", text, error))
        self.count += 1
        if change.is_delete:
            # What it was: nothing is there any more that could heal.
            doubtful = False
        else:
            self.keys.add(key, reason)
        if doubtful:
            self._doubtful[key] = change.without_value()
        else:
            self._doubtful.pop(key, None)
        with self._containment.unit("log_line", "value_undecodable"):
            _log.error(
                "value_undecodable",
                key=key.decode(errors="backslashreplace"),
                revision=change.mod_revision,
                reason=reason,
            )

    def forget(self, key: bytes) -> None:
        """The key has a good value now, or none."""
        if self.count:
            self.keys.forget(key)
            self._doubtful.pop(key, None)

    def begin_again(self) -> None:
        """Everything is going to be read again."""
        self.keys.begin_again()
        self._doubtful.clear()

    def doubtful(self) -> list[Change]:
        """Those that may be good: the decoder failed for want of something else."""
        return list(self._doubtful.values())

    def recheck(self, key: bytes) -> None:
        """A doubtful value is going to be decoded again."""
        self._doubtful.pop(key, None)
