"""The parts of a connection that its protocol uses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import unquote

from etcd_actions.web.answering import Answering
from etcd_actions.web.asgi import Headers, Message
from etcd_actions.web.peers import Address
from etcd_actions.web.requests import Requests
from etcd_actions.web.sockets import Wire


@dataclass(frozen=True, kw_only=True)
class Context:
    """The parts of a connection that its protocol uses.

    Attributes:
        answering: Answers requests.
        wire: The socket.
        requests: The requests in progress.
        scheme: ``http`` or ``https``.
        client: The client's address.
        server: The listener's address.
        peer: The client's address as text.
        is_leaving: Returns whether requests are refused.
        end: Sends no more, and gives the client time to receive the rest.
    """

    answering: Answering
    wire: Wire
    requests: Requests
    scheme: str
    client: Address
    server: Address
    peer: str
    is_leaving: Callable[[], bool]
    end: Callable[[], Awaitable[None]]

    def scope(
        self, version: str, method: str, target: bytes, headers: Headers, *, has_trailers: bool
    ) -> Message:
        """The ASGI scope of a request.

        Args:
            version: The version of HTTP.
            method: The method, in ASCII.
            target: The path and the query, in ASCII.
            headers: The headers, with names in lower case.
            has_trailers: Whether the response may end with headers.
        """
        path, _, query = target.partition(b"?")
        text = path.decode("ascii")
        return {
            "type": "http",
            "http_version": version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": method.upper(),
            "scheme": self.scheme,
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "client": self.client,
            "server": self.server,
            "extensions": {"http.response.trailers": {}} if has_trailers else {},
        }
