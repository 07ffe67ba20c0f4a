"""Which names a listener may be asked by.

A page in a browser can let its own name point to 127.0.0.1 and so reach what listens there, as
if it came from the same origin (DNS rebinding). The browser then tells the page's name in Host,
and mostly in Origin: a listener on the loopback address answers to its own names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from etcd_actions.web.asgi import Message
from etcd_actions.web.bind import is_loopback_address

_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z._-]+))(?::[0-9]{1,5})?")
_ORIGIN = re.compile(rb"https?://(.+)", re.IGNORECASE)


class Hosts:
    """The names of this machine to itself, and some more.

    Args:
        more: Further names or addresses, without ports.
    """

    def __init__(self, more: Iterable[str] = ()) -> None:
        self._more = {name.lower().rstrip(".").strip("[]") for name in more}

    def refusal(self, scope: Message) -> str | None:
        """Which header of a request names a stranger: ``host`` or ``origin``; None for none.

        A request without Host is no browser's.
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
