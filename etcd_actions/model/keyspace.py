"""Where everything is kept in etcd: Flyte's objects, and this package's own keys beside them."""

from __future__ import annotations

from typing import Final, final

from etcd_actions.model.names import DEFAULT_KEY_PREFIX, DEFAULT_NAMESPACE, ActionId, object_key

OWN_PREFIX: Final = b"/etcd-actions/"
"""What this package's own keys begin with: an API server never reads there."""


@final
class Keyspace:
    """The keys of one namespace under one prefix.

    Attributes:
        prefix: What comes before ``<namespace>/<name>`` in the keys of Flyte's objects.
        namespace: The Kubernetes namespace that new objects are in.
        side: What the keys begin with that this package keeps for itself: traces, the marks
            of aborts, the position, the election, dead letters. One ``prefix`` has one.
        traces: What the keys of traces begin with; like ``prefix``, before the namespace.
        aborts: The same of the markers of aborts.
        claims: The same of the claims of those who run actions.
        letters: What the keys of dead letters begin with.
        elections: The same of those that processes are elected by.
    """

    def __init__(
        self, prefix: bytes = DEFAULT_KEY_PREFIX, namespace: str = DEFAULT_NAMESPACE
    ) -> None:
        self.prefix = prefix
        self.namespace = namespace
        self.side = OWN_PREFIX + prefix.lstrip(b"/")
        self.traces = self.side + b"traces/"
        self.aborts = self.side + b"aborts/"
        self.claims = self.side + b"claims/"
        self.letters = self.side + b"dead-letters/"
        self.elections = self.side + b"election/"

    def task_action(self, action_id: ActionId) -> bytes:
        """The key of a task's or condition's object."""
        return object_key(self.prefix, self.namespace, action_id.object_name)

    def trace(self, action_id: ActionId) -> bytes:
        """The key of a trace."""
        return object_key(self.traces, self.namespace, action_id.object_name)

    def abort(self, action_id: ActionId) -> bytes:
        """The key that exists while an abort of this action counts."""
        return object_key(self.aborts, self.namespace, action_id.object_name)

    def claim(self, action_id: ActionId) -> bytes:
        """The key that exists while somebody runs this action."""
        return object_key(self.claims, self.namespace, action_id.object_name)

    def position(self, watched: str | None) -> bytes:
        """Where the position is kept of those who watch a namespace, or, with None, all."""
        return self.side + b"position/" + (watched or "*").encode()

    def election(self, watched: str | None) -> bytes:
        """Where they elect the one who records."""
        return self.elections + (watched or "*").encode()

    def run_prefixes(self, run: str) -> tuple[bytes, bytes, bytes]:
        """What the keys of a run begin with: of objects, traces and abort markers.

        So do those of runs whose name begins with ``<run>-``.
        """
        name = f"{run}-"
        return (
            object_key(self.prefix, self.namespace, name),
            object_key(self.traces, self.namespace, name),
            object_key(self.aborts, self.namespace, name),
        )
