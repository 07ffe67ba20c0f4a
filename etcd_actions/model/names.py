"""Names: labels, annotations, finalizers, action identities and etcd keys."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from etcd_actions.errors import DecodeError

API_VERSION: Final = "flyte.org/v1"
"""The version of new objects. An API server may store another version of the same group."""
KIND: Final = "TaskAction"

LABEL_PROJECT: Final = "flyte.org/project"
LABEL_DOMAIN: Final = "flyte.org/domain"
LABEL_RUN: Final = "flyte.org/run"
LABEL_ACTION: Final = "flyte.org/action"
LABEL_ACTION_TYPE: Final = "flyte.org/action-type"
LABEL_IS_ROOT: Final = "flyte.org/is-root"
LABEL_TERMINAL_STATUS_RECORDED: Final = "flyte.org/terminal-status-recorded"
"""``"true"`` once the run service accepted the terminal status."""
LABEL_TERMINATION_STATUS: Final = "flyte.org/termination-status"
"""``terminated``, written by the executor; its garbage collector selects by it."""
LABEL_COMPLETED_TIME: Final = "flyte.org/completed-time"
"""``YYYY-MM-DD.HH-MM`` in UTC, written by the executor for its garbage collector."""

FINALIZER_PLUGIN: Final = "flyte.org/plugin-finalizer"
"""The executor's: it stays until the plugin has aborted and finalized."""
FINALIZER_FOREGROUND: Final = "foregroundDeletion"
"""Kubernetes': it stays until the children are deleted."""

OWN_DOMAIN: Final = "etcd-actions.io"
FINALIZER_RECORD: Final = OWN_DOMAIN + "/record"
"""Ours: it stays until the terminal state of the action is recorded."""
ANNOTATION_ORG: Final = OWN_DOMAIN + "/org"
"""The organization of the action, for which Flyte's object has no field."""
ANNOTATION_ABORT_REASON: Final = OWN_DOMAIN + "/abort-reason"
ANNOTATION_ABORTED_BY: Final = OWN_DOMAIN + "/aborted-by"

ANNOTATION_DIGEST: Final = OWN_DOMAIN + "/request-digest"
"""A digest of the request that created the action: the same request again is not a conflict."""
ANNOTATION_SUBJECT: Final = OWN_DOMAIN + "/subject"
"""The subject that requested the action, for which Flyte's object has no field."""
ANNOTATION_RECORDED: Final = OWN_DOMAIN + "/recorded"
"""Which terminal state `LABEL_TERMINAL_STATUS_RECORDED` is about, see `etcd_actions.model.mark`."""
ANNOTATION_ATTEMPTS: Final = OWN_DOMAIN + "/attempts"
"""How the earlier attempts ended, see `etcd_actions.model.earlier_attempts`."""
ANNOTATION_RUN_START_TIME: Final = OWN_DOMAIN + "/run-start-time"
"""RFC 3339 in seconds, UTC: the value of ``{{.runStartTime}}`` in all actions of the run."""
ANNOTATION_CACHE_SCOPE: Final = OWN_DOMAIN + "/cache-scope"
"""`CACHE_SCOPE_GLOBAL`: the run shares cached results with all projects; else with its own."""
ANNOTATION_OVERWRITE_CACHE: Final = OWN_DOMAIN + "/overwrite-cache"
"""``true``: the run uses no cached results, and replaces them."""
ANNOTATION_MOST_AT_ONCE: Final = OWN_DOMAIN + "/max-action-concurrency"
"""How many actions of the run may be busy at once, in decimal digits."""
ANNOTATION_QUEUE: Final = OWN_DOMAIN + "/queue"
"""The queue of the action's task; an action without one has that of its run."""
ANNOTATION_RUN_QUEUE: Final = OWN_DOMAIN + "/run-queue"
"""The queue, else the cluster pool, of the run."""
ANNOTATION_RECOVERS: Final = OWN_DOMAIN + "/recovers"
"""The runs whose successful actions the run reuses, see `etcd_actions.actions.recovery`."""
ANNOTATION_TRACEPARENT: Final = OWN_DOMAIN + "/traceparent"
"""The span of OpenTelemetry that created the action, as W3C's ``traceparent``."""
RUN_ANNOTATIONS: Final = (
    ANNOTATION_CACHE_SCOPE,
    ANNOTATION_OVERWRITE_CACHE,
    ANNOTATION_MOST_AT_ONCE,
    ANNOTATION_RECOVERS,
    ANNOTATION_RUN_QUEUE,
)
"""The run's specification as far as Flyte's object has no fields for it: the root has these
annotations, and all tasks below inherit them."""

ANNOTATION_RECOVERED_FROM: Final = OWN_DOMAIN + "/recovered-from"
"""The run whose action of the same name has this action's outputs."""
ANNOTATION_RECOVERED_OUTPUTS: Final = OWN_DOMAIN + "/recovered-outputs"
"""The directory of these outputs, for which Flyte's object has no field."""

CACHE_SCOPE_GLOBAL: Final = "global"
NO_WORKER_FITS: Final = "no worker fits"
"""The beginning of the message of an action that waits for a worker that it fits."""

ACTION_TYPE_TASK: Final = "task"
ACTION_TYPE_CONDITION: Final = "condition"
ACTION_TYPE_TRACE: Final = "trace"
"""Ours: Flyte's schema has no traces, so their keys are below a prefix that no API server reads."""

ROOT_ACTION: Final = "a0"

DEFAULT_KEY_PREFIX: Final = b"/registry/flyte.org/taskactions/"
"""The keys of TaskActions of a Kubernetes API server with the default ``--etcd-prefix``."""
DEFAULT_NAMESPACE: Final = "flyte"
_GROUP_AND_VERSION: Final = re.compile(r"flyte\.org/[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
"""A version's name is a label of DNS: Kubernetes' rule for a CRD."""


def is_task_action(api_version: object, kind: object) -> bool:
    """Whether an object is a TaskAction, of any version of the API."""
    if kind != KIND or not isinstance(api_version, str):
        return False
    return api_version == API_VERSION or _GROUP_AND_VERSION.fullmatch(api_version) is not None


def check_type(api_version: object, kind: object) -> None:
    """Refuse an object that is not a TaskAction, or has no version.

    Raises:
        ValueError: The message names the kind and the version.
    """
    if not is_task_action(api_version, kind):
        raise ValueError(
            f"the object is a {str(kind)[:80]} of {str(api_version)[:80]}, and no {KIND} of "
            "flyte.org: is the prefix that of TaskActions?"
        )


def other_version(api_version: object) -> str:
    """The API version of a stored object if it is not `API_VERSION`; else empty."""
    return api_version if isinstance(api_version, str) and api_version != API_VERSION else ""


class RunId(msgspec.Struct, frozen=True, gc=False, order=True):
    """The identity of a run. Hashable; two are equal if all parts are equal.

    Attributes:
        project: The project.
        domain: The domain.
        run: The name of the run.
        org: The organization; empty if it is not known. Flyte's stored form does not have it.
    """

    project: str
    domain: str
    run: str
    org: str = ""


class ActionId(msgspec.Struct, frozen=True, gc=False, order=True):
    """The identity of an action. Hashable; two are equal if all parts are equal.

    Attributes:
        project: The project.
        domain: The domain.
        run: The name of the run.
        name: The name of the action in its run; that of the root is ``a0``, or like its run.
        org: The organization; empty if it is not known. Flyte's stored form does not have it; our
            objects have an annotation of it.
    """

    project: str
    domain: str
    run: str
    name: str
    org: str = ""

    @property
    def run_id(self) -> RunId:
        """The identity of its run."""
        return RunId(self.project, self.domain, self.run, self.org)

    @property
    def object_name(self) -> str:
        """The name of the action's object, see `task_action_name`."""
        return task_action_name(self.run, self.name)


def canonical_name(run: str, action: str) -> str:
    """The name of an action in its run: the root, which may be named like its run, is ``a0``."""
    return ROOT_ACTION if action == run else action


def task_action_name(run: str, action: str) -> str:
    """The name of an action's object, as of Flyte's ``buildTaskActionName``.

    The root may be named ``a0`` or like its run; both give ``<run>-a0``. Different actions can
    have the same object name: it has neither project nor domain, and run ``a-b`` with action
    ``c`` has the same as run ``a`` with action ``b-c``.
    """
    return f"{run}-{canonical_name(run, action)}"


def object_key(prefix: bytes, namespace: str, name: str) -> bytes:
    """Build the etcd key of an object, ``<prefix><namespace>/<name>``.

    Raises:
        ValueError: A part is empty or has a slash, so that the key would be another's.
    """
    if not namespace or not name or "/" in namespace or "/" in name:
        raise ValueError(f"no key can be made of namespace {namespace!r} and name {name!r}")
    return prefix + f"{namespace}/{name}".encode()


def run_key_prefix(prefix: bytes, namespace: str, run: str) -> bytes:
    """Build the prefix of the keys of a run's actions.

    Keys of other runs whose name begins with ``<run>-`` have this prefix, too.
    """
    return object_key(prefix, namespace, run) + b"-"


def parse_key(prefix: bytes, key: bytes) -> tuple[str, str]:
    """Return namespace and name of an etcd key.

    Raises:
        DecodeError: The key is not ``<prefix><namespace>/<name>`` in UTF-8.
    """
    if not key.startswith(prefix):
        raise DecodeError(f"the key is not below {prefix.decode(errors='replace')}", key=key)
    try:
        namespace, slash, name = key[len(prefix) :].decode().partition("/")
    except UnicodeDecodeError as error:
        raise DecodeError(f"the key is not UTF-8: {error}", key=key) from None
    if not slash or not namespace or not name or "/" in name:
        raise DecodeError("the key is not <prefix><namespace>/<name>", key=key)
    return namespace, name
