"""The host names that a listener accepts.

A page in a browser can let its own name resolve to 127.0.0.1 and so reach a listener there as its
own origin (DNS rebinding). The browser then sends the page's name in Host, and mostly in Origin: a
listener on the loopback address accepts only its own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from etcd_actions.web.asgi import Message
from etcd_actions.web.bind import is_loopback_address

_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]+))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rb"https?://(.+)", re.IGNORECASE)


class Hosts:
    """The names of this machine, and further ones."""

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._more = {name.lower().rstrip(".").strip("[]") for name in more}

    def refusal(self, scope: Message) -> str | None:
        """The header with a name that is not allowed, ``host`` or ``origin``; None for none.

        A request without Host is allowed: it does not come from a browser.
        """
        for name, value in scope["headers"]:
            key = name.lower()
            if key == b"host" and value and not self._is_ours(value):
                return "host"
            if key == b"origin":
                match = _ORIGIN.fullmatch(value.strip())
                if match is None or not self._is_ours(match[1]):
                    return "origin"
        return None

    def _is_ours(self, value: bytes) -> bool:
        match = _HOST.fullmatch(value.strip())
        if match is None:
            return False
        host = (match[1] or match[2]).decode("ascii").lower().rstrip(".")
        return host == "localhost" or host in self._more or is_loopback_address(host)
