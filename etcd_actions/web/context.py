"""What the protocols of one connection need of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from etcd_actions.web.answering import Answering
from etcd_actions.web.asgi import Headers, Message
from etcd_actions.web.peers import Address
from etcd_actions.web.requests import Requests
from etcd_actions.web.sockets import Wire


class Context:
    """What the protocols of one connection need of it.

    Attributes:
        answering: What answers requests.
        wire: Where the bytes go.
        requests: The requests that are under way.
        peer: Where the client is, in words.
        is_leaving: Whether no more requests are taken.
        end: Sends no more, and gives the client time to take what was sent.
    """

    def __init__(
        self,
        answering: Answering,
        wire: Wire,
        requests: Requests,
        peer: str,
        *,
        is_leaving: Callable[[], bool],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        self.answering = answering
        self.wire = wire
        self.requests = requests
        self.peer = peer
        self.is_leaving = is_leaving
        self.end = end


class Scopes:
    """Makes the scopes of ASGI for the requests of one connection."""

    def __init__(self, scheme: str, client: Address, server: Address) -> None:
        self._scheme = scheme
        self._client = client
        self._server = server

    def make(
        self, version: str, method: str, target: bytes, headers: Headers, *, has_trailers: bool
    ) -> Message:
        """The scope of one request.

        Args:
            version: Of HTTP.
            method: In ASCII.
            target: In ASCII, with the query.
            headers: With names in lower case.
            has_trailers: Whether its answer may end with headers.
        """
        path, _, query = target.partition(b"?")
        text = path.decode("ascii")
        return {
            "type": "http",
            "http_version": version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method.upper(),
            "scheme": self._scheme,
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self._client,
            "server": self._server,
            "extensions": {"http.response.trailers": {}} if has_trailers else {},
        }
