"""Who asks, as far as a method needs to know it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from etcd_actions.web import Message


@dataclass(frozen=True)
class Caller:
    """The client of a request.

    Attributes:
        origin: How it reaches this server, such as ``http://127.0.0.1:8093``: what the URLs that
            it is given begin with.
        authorization: Its header ``authorization``, empty for none; not to be logged.
        subject: Who it is, by its token; empty where that does not say, or none is asked for.
        projects: The projects that its token may use; None for all.
    """

    origin: str
    authorization: str = ""
    subject: str = ""
    projects: frozenset[str] | None = None

    @classmethod
    def of(cls, scope: Message) -> Caller:
        """The caller of an ASGI request, before its token is looked at."""
        host = authorization = ""
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"authorization":
                authorization = value.decode("latin-1")
        if not host and (server := scope.get("server")):
            host = f"{server[0]}:{server[1]}"
        return cls(f"{scope['scheme']}://{host}", authorization)

    def may_use(self, project: str) -> bool:
        """Whether its token may use a project."""
        return self.projects is None or project in self.projects


CALLER: ContextVar[Caller] = ContextVar("CALLER")
"""The caller of the method that the task at hand answers."""
