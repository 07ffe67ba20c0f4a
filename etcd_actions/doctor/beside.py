"""A Kubernetes API server on the same etcd: whether there is one, and what it makes of actions.

Its own keys are beside ours, below what it calls ``--etcd-prefix``. Where we may not read them
its entries in ``metadata.managedFields`` tell that it is there.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.doctor.kubernetes import is_terminating
from etcd_actions.doctor.subject import Subject, as_text
from etcd_actions.errors import PermissionDenied
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange, KeyValue
from etcd_actions.model import DEFAULT_NAMESPACE

API_SERVER = Kind(id="api-server", severity=Severity.OK)
HELD = Kind(
    id="finalizer-beside-api-server",
    severity=Severity.NOTE,
    meaning="An API server that shares the prefix deletes these only once their end is recorded. "
    "Should it ever encrypt actions at rest, nobody could record it, and they would stay for ever.",
    remedy="nothing has to be done while it encrypts none; where it is to: run with "
    "--finalizer=false, then: etcd-actions release-finalizers",
)
NO_NAMESPACE = Kind(
    id="namespace-missing",
    severity=Severity.WARNING,
    meaning="The API server has no such namespace: it refuses every change of the actions there, "
    "an executor's reports among them, and no controller of its own ever deletes them.",
    remedy="kubectl create namespace '<namespace>'; or enqueue into one that it has: --namespace",
)
NAMESPACE_ENDS = Kind(
    id="namespace-terminating",
    severity=Severity.WARNING,
    meaning="The API server deletes all that is in this namespace: what is enqueued there is "
    "deleted with it, and told as ABORTED, or stays behind in no namespace.",
    remedy="enqueue into another: --namespace; see what the deletion waits for: kubectl get "
    "namespace '<namespace>' -o yaml",
)
NO_CRD = Kind(
    id="crd-missing",
    severity=Severity.NOTE,
    meaning="The API server does not serve TaskActions: nobody who asks it sees any.",
    remedy="nothing has to be done where nobody is to; else apply Flyte's CRD "
    "taskactions.flyte.org",
)
CRD_ENDS = Kind(
    id="crd-terminating",
    severity=Severity.WARNING,
    meaning="The API server deletes all TaskActions: what is enqueued now is deleted, and told as "
    "ABORTED, or stays behind where it serves none any more.",
    remedy="enqueue nothing until Flyte's CRD is applied again; see what the deletion waits for: "
    "kubectl get crd taskactions.flyte.org -o yaml",
)
NOT_READ = Kind(
    id="api-server-not-read",
    severity=Severity.NOTE,
    meaning="Whether the API server takes actions in this namespace was not looked at.",
    remedy="kubectl get namespace '<namespace>'; kubectl get crd taskactions.flyte.org",
)

KINDS = (API_SERVER, HELD, NO_NAMESPACE, NAMESPACE_ENDS, NO_CRD, CRD_ENDS, NOT_READ)

_MOST_NAMESPACES: Final = 100
_RESOURCE: Final = b"flyte.org/taskactions/"
_NAMESPACES: Final = b"namespaces/"
_CRDS: Final = b"apiextensions.k8s.io/customresourcedefinitions/"
_TRACES: Final = (_NAMESPACES, _CRDS, b"apiregistration.k8s.io/apiservices/", b"masterleases/")


class Beside:
    """What the actions themselves tell; of the keys of one kind only the first is kept.

    Attributes:
        namespaces: Those that have actions, up to a number.
    """

    def __init__(self) -> None:
        self.namespaces: set[str] = set()
        self._managed: bytes | None = None
        self._held: bytes | None = None
        self._count = 0

    def take(self, kv: KeyValue, namespace: str, *, held: bool) -> None:
        """Look at one action."""
        if len(self.namespaces) < _MOST_NAMESPACES:
            self.namespaces.add(namespace)
        if held:
            self._held = self._held or kv.key
            self._count += 1
        # Nobody else writes it; in another form than JSON no API server reads it.
        if self._managed is None and b'"managedFields":[{' in kv.value:
            self._managed = kv.key

    async def check(self, subject: Subject, etcd: EtcdClient) -> list[Finding]:
        """Find an API server, and what it makes of where actions are."""
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
            findings += await self._look(subject, etcd, root, traces)
        seen = ", ".join(as_text(root + trace) for trace in traces)
        if self._managed is not None:
            seen += f"{'; ' if seen else ''}it wrote {as_text(self._managed)}"
        return [API_SERVER.found(f"a Kubernetes API server uses this etcd: {seen}"), *findings]

    async def _look(
        self, subject: Subject, etcd: EtcdClient, root: bytes, traces: Iterable[bytes]
    ) -> list[Finding]:
        findings = []
        used = {subject.namespace or DEFAULT_NAMESPACE} | self.namespaces
        for namespace in sorted(used) if _NAMESPACES in traces else ():
            key = root + _NAMESPACES + namespace.encode()
            finding = await _judge(etcd, key, "Namespace", NO_NAMESPACE, NAMESPACE_ENDS, namespace)
            findings += finding
        crd = root + _CRDS + b"taskactions.flyte.org"
        namespace = subject.namespace or DEFAULT_NAMESPACE
        kind = "CustomResourceDefinition"
        return findings + await _judge(etcd, crd, kind, NO_CRD, CRD_ENDS, namespace)


async def _any(etcd: EtcdClient, prefix: bytes) -> bool:
    found = await etcd.range(KeyRange.of_prefix(prefix), limit=1, keys_only=True)
    return bool(found.kvs)


async def _judge(
    etcd: EtcdClient, key: bytes, kind: str, missing: Kind, ending: Kind, namespace: str
) -> list[Finding]:
    """What is to be told of one object of the API server."""
    found = await etcd.range(KeyRange.of_key(key), limit=1)
    if not found.kvs:
        return [missing.found(f"there is no {as_text(key)}", namespace=namespace)]
    try:
        if not is_terminating(found.kvs[0].value, kind):
            return []
    except ValueError as error:
        return [NOT_READ.found(f"{as_text(key)} cannot be read: {error}", namespace=namespace)]
    return [ending.found(f"{as_text(key)} is being deleted", namespace=namespace)]
