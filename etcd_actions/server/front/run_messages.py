"""Encodes messages with runs: each state of a run once, for all lists and streams.

All clients get the same encoded form of a run. The forms are cached, and a message is joined from
them, which costs a fiftieth of encoding the message.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final, NamedTuple

from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions.runs.run_entry import RunEntry
from etcd_actions.server.front.run_views import run_message

MOST_BYTES: Final = 8 * 1024 * 1024
"""The most bytes of cached forms, with the overhead of each."""
_FORM_OVERHEAD: Final = 1024
"""The overhead of a cached form, in bytes."""


class _Form(NamedTuple):
    entry: RunEntry
    """The run in one state: another state is another entry."""
    encoded: bytes
    """The field ``runs`` with its tag, which is the same in all messages."""


class RunMessages:
    """Encodes messages with runs.

    Args:
        most_bytes: See :data:`MOST_BYTES`.

    Attributes:
        encoded: The number of runs that were encoded.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most = most_bytes
        self._forms: OrderedDict[bytes, _Form] = OrderedDict()
        self._bytes = 0
        self.encoded = 0

    @property
    def kept_bytes(self) -> int:
        """The bytes of cached forms, with the overhead of each."""
        return self._bytes

    def watched(self, entries: Iterable[RunEntry]) -> pb.WatchRunsResponse:
        """A message of a stream."""
        return pb.WatchRunsResponse.FromString(self._joined(entries))

    def listed(self, entries: Iterable[RunEntry], token: str) -> pb.ListRunsResponse:
        """A page."""
        page = pb.ListRunsResponse.FromString(self._joined(entries))
        page.token = token
        return page

    def _joined(self, entries: Iterable[RunEntry]) -> bytes:
        return b"".join([self._encoded(entry) for entry in entries])

    def _encoded(self, entry: RunEntry) -> bytes:
        form = self._forms.get(entry.key)
        if form is not None and form.entry is entry:
            self._forms.move_to_end(entry.key)
            return form.encoded
        message = pb.WatchRunsResponse(runs=[run_message(entry.record())])
        encoded: bytes = message.SerializeToString()
        self.encoded += 1
        self._cache(entry, encoded)
        return encoded

    def _cache(self, entry: RunEntry, encoded: bytes) -> None:
        if (old := self._forms.pop(entry.key, None)) is not None:
            self._bytes -= _size(old)
        form = self._forms[entry.key] = _Form(entry, encoded)
        self._bytes += _size(form)
        while self._bytes > self._most:
            _, oldest = self._forms.popitem(last=False)
            self._bytes -= _size(oldest)


def _size(form: _Form) -> int:
    return len(form.encoded) + _FORM_OVERHEAD
