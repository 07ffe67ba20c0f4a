"""Whether a Kubernetes API server uses the same etcd, and whether it accepts actions.

Its own keys are next to ours, below its ``--etcd-prefix``. If we may not read them, its entries in
``metadata.managedFields`` of actions show that it exists.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.kubernetes import is_terminating
from etcd_actions.doctor.subject import Subject, as_text
from etcd_actions.errors import PermissionDenied
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import DEFAULT_NAMESPACE

API_SERVER = Kind.ok("api-server")
HELD = Kind.note(
    "finalizer-beside-api-server",
    "An API server that shares the prefix deletes these only once their terminal phase is "
    "recorded. If it ever encrypts actions at rest, none of them can be recorded or deleted.",
    "no action is needed while it encrypts none; before it does, run with --finalizer=false, "
    "then: etcd-actions release-finalizers",
)
NO_NAMESPACE = Kind.warning(
    "namespace-missing",
    "The API server has no such namespace: it refuses every change of the actions there, an "
    "executor's reports among them, and no controller of its own ever deletes them.",
    "kubectl create namespace '<namespace>'; or enqueue into one that it has: --namespace",
)
NAMESPACE_ENDS = Kind.warning(
    "namespace-terminating",
    "The API server deletes all objects in this namespace: an action that is enqueued there is "
    "deleted with it, and reported as ABORTED, or stays behind without a namespace.",
    "enqueue into another: --namespace; to find what the deletion waits for: kubectl get "
    "namespace '<namespace>' -o yaml",
)
NO_CRD = Kind.note(
    "crd-missing",
    "The API server does not serve TaskActions: its clients see none.",
    "if its clients should see them, apply Flyte's CRD taskactions.flyte.org",
)
CRD_ENDS = Kind.warning(
    "crd-terminating",
    "The API server deletes all TaskActions: an action that is enqueued now is deleted, and "
    "reported as ABORTED, or stays behind when the API server serves none any more.",
    "enqueue nothing until Flyte's CRD is applied again; to find what the deletion waits for: "
    "kubectl get crd taskactions.flyte.org -o yaml",
)
NOT_READ = Kind.note(
    "api-server-not-read",
    "Whether the API server accepts actions in this namespace was not examined.",
    "kubectl get namespace '<namespace>'; kubectl get crd taskactions.flyte.org",
)

_MOST_NAMESPACES: Final = 100
_RESOURCE: Final = b"flyte.org/taskactions/"
_NAMESPACES: Final = b"namespaces/"
_CRDS: Final = b"apiextensions.k8s.io/customresourcedefinitions/"
_TRACES: Final = (_NAMESPACES, _CRDS, b"apiregistration.k8s.io/apiservices/", b"masterleases/")


class ApiServer:
    """The signs of an API server in the actions, and the checks of its own keys.

    Attributes:
        namespaces: The namespaces that have actions, at most 100.
    """

    def __init__(self) -> None:
        self.namespaces: set[str] = set()
        self._managed: bytes | None = None
        self._held: bytes | None = None
        self._count = 0

    def take(self, kv: KeyValue, namespace: str, *, held: bool) -> None:
        """Examine one action; ``held`` if it has our finalizer."""
        if len(self.namespaces) < _MOST_NAMESPACES:
            self.namespaces.add(namespace)
        if held:
            self._held = self._held or kv.key
            self._count += 1
        # Only an API server writes this field, and it reads JSON only.
        if self._managed is None and b'"managedFields":[{' in kv.value:
            self._managed = kv.key

    async def check(self, subject: Subject, etcd: EtcdClient) -> list[Finding]:
        """Detect an API server, and examine the namespaces of actions and the CRD in it."""
        if not subject.prefix.endswith(_RESOURCE):
            return []
        root = subject.prefix.removesuffix(_RESOURCE)
        try:
            traces = [trace for trace in _TRACES if await _any(etcd, root + trace)]
            denied = ""
        except PermissionDenied as error:
            traces, denied = [], str(error)
        if not traces and self._managed is None:
            return []
        findings = []
        if self._count:
            first = as_text(self._held or b"")
            findings.append(HELD.found(f"{self._count} hold our finalizer, such as {first}"))
        if denied:
            namespace = subject.namespace or DEFAULT_NAMESPACE
            findings.append(NOT_READ.found(denied, namespace=namespace))
        else:
            findings += await self._examine(subject, etcd, root, traces)
        seen = ", ".join(as_text(root + trace) for trace in traces)
        if self._managed is not None:
            seen += f"{'; ' if seen else ''}it wrote {as_text(self._managed)}"
        return [API_SERVER.found(f"a Kubernetes API server uses this etcd: {seen}"), *findings]

    async def _examine(
        self, subject: Subject, etcd: EtcdClient, root: bytes, traces: Iterable[bytes]
    ) -> list[Finding]:
        findings = []
        used = {subject.namespace or DEFAULT_NAMESPACE} | self.namespaces
        for namespace in sorted(used) if _NAMESPACES in traces else ():
            key = root + _NAMESPACES + namespace.encode()
            kinds = NO_NAMESPACE, NAMESPACE_ENDS
            findings += await _judge(etcd, key, "Namespace", *kinds, namespace)
        crd = root + _CRDS + b"taskactions.flyte.org"
        namespace = subject.namespace or DEFAULT_NAMESPACE
        kind = "CustomResourceDefinition"
        return findings + await _judge(etcd, crd, kind, NO_CRD, CRD_ENDS, namespace)


async def _any(etcd: EtcdClient, prefix: bytes) -> bool:
    found = await etcd.range(KeyRange.of_prefix(prefix), limit=1, keys_only=True)
    return bool(found.kvs)


async def _judge(
    etcd: EtcdClient, key: bytes, kind: str, missing: Kind, deleted: Kind, namespace: str
) -> list[Finding]:
    """The finding about one object of the API server."""
    found = await etcd.range(KeyRange.of_key(key), limit=1)
    if not found.kvs:
        return [missing.found(f"there is no {as_text(key)}", namespace=namespace)]
    try:
        if not is_terminating(found.kvs[0].value, kind):
            return []
    except ValueError as error:
        return [NOT_READ.found(f"{as_text(key)} cannot be read: {error}", namespace=namespace)]
    return [deleted.found(f"{as_text(key)} is being deleted", namespace=namespace)]
