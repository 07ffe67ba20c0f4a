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
    """The values that cannot be decoded, in this process.

    Args:
        containment: Counts a decoder that fails unexpectedly.

    Attributes:
        keys: The keys that have such a value now, and why it cannot be decoded.
        count: Number of values that could not be decoded.
    """

    def __init__(self, containment: Containment) -> None:
        self._containment = containment
        # Values that may be good: the decoder failed for another reason than their bytes.
        self._doubtful: dict[bytes, Change] = {}
        self.keys: Undecodable = Undecodable()
        self.count: int = 0

    def __contains__(self, key: bytes) -> bool:
        """Whether a key has such a value now."""
        return key in self.keys

    def add(self, change: Change, error: BaseException) -> None:
        """Set the value of a change aside.

        Args:
            change: The change. Of a deletion, the value before it cannot be decoded.
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
            # The key is gone: no later write can replace the value.
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
        """Forget a key: it has a good value now, or is deleted."""
        if self.count:
            self.keys.forget(key)
            self._doubtful.pop(key, None)

    def begin_again(self) -> None:
        """Forget the doubtful values: a list is going to read all keys again."""
        self.keys.begin_again()
        self._doubtful.clear()

    def doubtful(self) -> list[Change]:
        """The changes whose value may be good: the decoder failed unexpectedly."""
        return list(self._doubtful.values())

    def recheck(self, key: bytes) -> None:
        """Forget a doubtful value that is going to be decoded again."""
        self._doubtful.pop(key, None)
