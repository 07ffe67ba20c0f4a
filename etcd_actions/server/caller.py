"""The client of the request in progress: how it reaches the service, and what it may use."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from etcd_actions.web import Message


@dataclass(frozen=True)
class Caller:
    """The client of a request.

    Attributes:
        origin: The scheme and host by which it reaches this server, such as
            ``http://127.0.0.1:8093``; URLs in responses begin with it.
        subject: The name in its token; empty if the token has none, or no token is needed.
        projects: The projects that its token may use; None for all.
    """

    origin: str
    subject: str = ""
    projects: frozenset[str] | None = None

    @classmethod
    def of(cls, scope: Message) -> Caller:
        """The caller of an ASGI request, before its token is checked."""
        for name, value in scope["headers"]:
            if name == b"host" and value:
                return cls(f"{scope['scheme']}://{value.decode('latin-1')}")
        server = scope.get("server")
        return cls(f"{scope['scheme']}://" + (f"{server[0]}:{server[1]}" if server else ""))

    def may_use(self, project: str) -> bool:
        """Whether its token may use a project."""
        return self.projects is None or project in self.projects

    @property
    def token(self) -> str:
        """Its token in the words of an error message; never the token itself."""
        return f"the token of {self.subject}" if self.subject else "this token"


CALLER: ContextVar[Caller] = ContextVar("CALLER")
"""The caller of the method that the current task serves."""
