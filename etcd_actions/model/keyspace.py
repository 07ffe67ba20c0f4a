"""The keys in etcd: Flyte's objects, and those of this package."""

from __future__ import annotations

from typing import Final, final

from etcd_actions.model.names import (
    DEFAULT_KEY_PREFIX,
    DEFAULT_NAMESPACE,
    ActionId,
    RunId,
    object_key,
)
from etcd_actions.model.namespaces import NamespaceTemplate

OWN_PREFIX: Final = b"/etcd-actions/"
"""The prefix of this package's own keys, which no API server reads."""


@final
class Keyspace:
    """The keys under one prefix, in one namespace or in a namespace for each project and domain.

    Args:
        prefix: The part before ``<namespace>/<name>`` in the keys of Flyte's objects.
        namespace: The Kubernetes namespace of all actions.
        template: Makes the namespace of each action instead of ``namespace``.

    All attributes but ``namespace``, ``deployment`` and those of Flyte's objects are prefixes of
    this package's own keys. After each prefix from ``traces`` to ``histories``,
    ``<namespace>/<name>`` follows.

    Attributes:
        prefix: The part before ``<namespace>/<name>`` in the keys of Flyte's objects.
        namespace: The namespace of all actions; None if there is a template.
        own: The prefix of all own keys that belong to ``prefix``.
        traces: Traces.
        aborts: Markers of aborts.
        claims: Claims of executors.
        runs: Records of runs.
        run_tasks: Task specifications of runs' roots.
        histories: Histories of actions.
        dead_letters: Dead letters.
        elections: Elections.
        workers: Offers of workers.
        shards: Shards, their owners and members.
        tasks: Deployed tasks.
        projects: Projects that clients created or changed.
        catalog: Cached results.
        images: Definitions of images.
        signing: Keys that sign URLs.
        deployment: The key of the name that is part of the addresses of uploads.
    """

    def __init__(
        self,
        prefix: bytes = DEFAULT_KEY_PREFIX,
        namespace: str = DEFAULT_NAMESPACE,
        *,
        template: NamespaceTemplate | None = None,
    ) -> None:
        self.prefix = prefix
        self._template = template
        self.namespace: str | None = namespace if template is None else None
        self.own: bytes = OWN_PREFIX + prefix.lstrip(b"/")
        self.traces: bytes = self.own + b"traces/"
        self.aborts: bytes = self.own + b"aborts/"
        self.claims: bytes = self.own + b"claims/"
        self.workers: bytes = self.own + b"workers/"
        self.dead_letters: bytes = self.own + b"dead-letters/"
        self.elections: bytes = self.own + b"election/"
        self.shards: bytes = self.own + b"shards/"
        self.runs: bytes = self.own + b"runs/"
        self.run_tasks: bytes = self.own + b"run-tasks/"
        self.histories: bytes = self.own + b"history/"
        self.tasks: bytes = self.own + b"tasks/"
        self.projects: bytes = self.own + b"projects/"
        self.catalog: bytes = self.own + b"catalog/"
        self.images: bytes = self.own + b"images/"
        self.signing: bytes = self.own + b"signing/"
        self.deployment: bytes = self.own + b"deployment"

    def namespace_of(self, action_id: ActionId | RunId) -> str:
        """The namespace of an action or a run, by its project and domain.

        Raises:
            InvalidArgument: The template makes no valid namespace of them.
        """
        if self._template is None:
            assert self.namespace is not None
            return self.namespace
        return self._template.namespace_of(action_id.project, action_id.domain)

    def of(self, action_id: ActionId | RunId) -> Keyspace:
        """The keyspace of one namespace: the namespace of a run and of all its actions.

        Raises:
            InvalidArgument: The template makes no valid namespace of its project and domain.
        """
        return self if self._template is None else self.within(self.namespace_of(action_id))

    def within(self, namespace: str) -> Keyspace:
        """The keyspace of one namespace under the same prefix."""
        return Keyspace(self.prefix, namespace)

    def below(self, prefix: bytes) -> bytes:
        """The prefix of all keys of one kind; with a template, in all namespaces.

        Args:
            prefix: The kind, such as ``claims``.
        """
        return prefix if self.namespace is None else prefix + self.namespace.encode() + b"/"

    def task_action(self, action_id: ActionId) -> bytes:
        """The key of a task's or condition's object."""
        return object_key(self.prefix, self.namespace_of(action_id), action_id.object_name)

    def trace(self, action_id: ActionId) -> bytes:
        """The key of a trace."""
        return object_key(self.traces, self.namespace_of(action_id), action_id.object_name)

    def abort(self, action_id: ActionId) -> bytes:
        """The key that exists while an abort of this action counts."""
        return object_key(self.aborts, self.namespace_of(action_id), action_id.object_name)

    def claim(self, action_id: ActionId) -> bytes:
        """The key that exists while a process runs this action."""
        return object_key(self.claims, self.namespace_of(action_id), action_id.object_name)

    def run_record(self, action_id: ActionId) -> bytes:
        """The key of the record of an action's run."""
        return object_key(self.runs, self.namespace_of(action_id), action_id.run)

    def run_task(self, action_id: ActionId) -> bytes:
        """The key of the task specification of the root of an action's run."""
        return object_key(self.run_tasks, self.namespace_of(action_id), action_id.run)

    def history(self, action_id: ActionId) -> bytes:
        """The key of an action's history."""
        return object_key(self.histories, self.namespace_of(action_id), action_id.object_name)

    def checkpoint(self, watched: str | None) -> bytes:
        """The key of the checkpoint of leaders that watch a namespace; None for all namespaces."""
        return self.own + b"position/" + (watched or "*").encode()

    def election(self, watched: str | None) -> bytes:
        """The prefix of the election of these leaders."""
        return self.elections + (watched or "*").encode()

    def run_prefixes(self, run: str) -> tuple[bytes, bytes, bytes]:
        """The prefixes of a run's objects, traces and abort markers.

        Keys of other runs whose name begins with ``<run>-`` have these prefixes, too.

        Raises:
            ValueError: It is not the keyspace of one namespace (see `of`), or the name of the run
                is empty or has a slash.
        """
        if self.namespace is None:
            raise ValueError("with a template a run's keys need its project and domain")
        name = f"{run}-"
        return (
            object_key(self.prefix, self.namespace, name),
            object_key(self.traces, self.namespace, name),
            object_key(self.aborts, self.namespace, name),
        )
