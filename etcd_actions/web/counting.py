"""h2's connection, without its count of all open streams at each request."""

from __future__ import annotations

from typing import Final

import h2.connection

_OFTEN: Final = 100
"""The least number of new streams between two counts."""


class CountingConnection(h2.connection.H2Connection):
    """A server's connection that counts its streams only when necessary.

    h2 counts all streams at each new one. This class counts when the limit may be reached, and
    otherwise once for as many new streams as there were open ones.
    """

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self._counted = 0
        self._since = 0

    @property
    def open_inbound_streams(self) -> int:
        """The number of open streams, or a higher one that is below the limit, too."""
        # h2 reads it once for each new stream.
        most = self.local_settings.max_concurrent_streams
        at_most = self._counted + self._since
        if at_most >= most or self._since >= max(_OFTEN, self._counted):
            at_most = self._counted = super().open_inbound_streams
            self._since = 0
        self._since += 1
        return at_most
