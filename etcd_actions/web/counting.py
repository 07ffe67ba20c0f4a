"""h2's connection, without work that grows with the number of open streams at each request."""

from __future__ import annotations

from typing import Final

import h2.connection

_OFTEN: Final = 100


class CountingConnection(h2.connection.H2Connection):
    """A server's connection that counts its streams when it must.

    h2 looks at all streams at each new one. Here that is done when the bound may be reached,
    and else once for as many new streams as there were open ones.
    """

    def __init__(self, config: h2.config.H2Configuration) -> None:
        super().__init__(config)
        self._counted = 0
        self._since = 0

    @property
    def open_inbound_streams(self) -> int:
        """As many as are open, or more, but never so many more that one is refused for it."""
        # h2 asks once for each new stream.
        most = self.local_settings.max_concurrent_streams
        at_most = self._counted + self._since
        if at_most >= most or self._since >= max(_OFTEN, self._counted):
            at_most = self._counted = super().open_inbound_streams
            self._since = 0
        self._since += 1
        return at_most
