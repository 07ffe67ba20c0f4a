"""The values below the prefix: actions, and values that are not actions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from etcd_actions.codecs import ENCRYPTED_AT_REST, codec_of
from etcd_actions.doctor.api_server import ApiServer
from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.scan import Examples, scan
from etcd_actions.doctor.subject import Subject, as_text, size_text
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import (
    FINALIZER_RECORD,
    NO_WORKER_FITS,
    ActionObject,
    Phase,
    is_task_action,
    other_version,
    parse_key,
)

ACTIONS = Kind.ok("actions")
UNDECODABLE = Kind.error(
    "undecodable",
    "These actions are neither reported nor marked: their runs never end.",
    "etcdctl get '<key>' --print-value-only, then have its writer write it as JSON, or delete it",
)
OTHER_VERSION = Kind.note(
    "other-version",
    "An API server stores them at another version of the API than the known one. The known fields "
    "are read, and every write keeps the version and all other fields.",
    "no action is needed; the stored version: kubectl get crd taskactions.flyte.org -o yaml; "
    "update etcd-actions if that version is newer",
)
UNREADABLE_VERSION = Kind.error(
    "undecodable-version",
    "These are actions, stored at another version of the API, some fields of which differ from "
    "the known one: they are neither reported nor marked until they can be decoded.",
    "update etcd-actions to a release that knows this version; or have the API server store "
    "flyte.org/v1 again, and rewrite them: kubectl get taskactions.flyte.org -A -o json | kubectl "
    "replace -f -",
)
ENCRYPTED = Kind.error(
    "encrypted-values",
    "An API server encrypts these actions at rest, and no other process can read them: they are "
    "neither reported nor marked, and those with our finalizer are never deleted.",
    "remove taskactions.flyte.org from the API server's --encryption-provider-config and "
    "rewrite them: kubectl get taskactions.flyte.org -A -o json | kubectl replace -f -; if "
    "they stay encrypted, run with --finalizer=false, and have the API server release them: "
    "etcd-actions release-finalizers",
)
MIXED_CODECS = Kind.warning(
    "mixed-codecs",
    "A Kubernetes API server reads only its own JSON: with one value in another form, all its "
    "lists of the namespace fail.",
    "have every writer below this prefix use --codec json, or use no API server with it",
)
ODD_KEYS = Kind.warning(
    "odd-keys",
    "The keys are not <prefix><namespace>/<name>: no action can have them, and a Kubernetes "
    "API server cannot process them.",
    "check --prefix; if it is right, delete them: etcdctl del '<key>'",
)
ELSEWHERE = Kind.warning(
    "other-namespaces",
    "--namespace-template makes another namespace for these actions, which are not terminal: "
    "no lookup by name finds them, no executor runs them, and nothing can be enqueued below "
    "them.",
    "run them to their end without the template; or end them, each root in its namespace: "
    "etcd-actions abort <project>/<domain>/<run>/a0 --namespace <namespace>",
)
LARGE = Kind.warning(
    "large-values",
    "A value that grows above etcd's --max-request-bytes (1.5 MiB by default) cannot be written "
    "any more: no mark can be made.",
    "raise --max-request-bytes, or have the writer store less in it; the largest is '<key>'",
)
NO_WORKER = Kind.warning(
    "no-worker-fits",
    "These actions need resources, a pool or a label that no live worker offers: they wait until "
    "one joins.",
    "start a worker with the flags that the message names: etcd-actions worker --help",
)
WAITING = Kind.note(
    "unrecorded-endings",
    "These actions are terminal, and wait for the run service to accept that. If no leader "
    "runs, or they wait for more than minutes, find the cause.",
    "etcd-actions list --unrecorded; check that etcd-actions run is running, and read its log",
)
NOT_ALL = Kind.note(
    "values-not-all-read",
    "The other values were not examined.",
    "give --namespace to examine a part",
)

_WITH_EXAMPLES = (
    UNDECODABLE,
    UNREADABLE_VERSION,
    ENCRYPTED,
    OTHER_VERSION,
    ODD_KEYS,
    ELSEWHERE,
    NO_WORKER,
    WAITING,
    LARGE,
)


class _Tally:
    """Counts actions and findings, with a few examples of each."""

    def __init__(self, subject: Subject, api_server: ApiServer) -> None:
        self._subject = subject
        self._api_server = api_server
        self.values = self._size = self._terminal = self._recorded = 0
        self._largest = 0, b""
        self._codecs: Counter[str] = Counter()
        examples = subject.limits.examples
        self._examples = {kind.id: Examples(examples) for kind in _WITH_EXAMPLES}

    def take(self, kv: KeyValue) -> None:
        """Examine one key and its value."""
        self.values += 1
        size = len(kv.value)
        self._size += size
        if size >= self._subject.limits.large_value:
            self._note(LARGE, kv, size_text(size))
            if size > self._largest[0]:
                self._largest = size, kv.key
        namespace = ""
        try:
            namespace, _ = parse_key(self._subject.prefix, kv.key)
        except DecodeError:
            self._note(ODD_KEYS, kv, f"revision {kv.mod_revision}")
        codec = codec_of(kv.value)
        try:
            action = codec.decode(kv.value, key=kv.key, revision=kv.mod_revision)
        except DecodeError as error:
            self._note(_unreadable(kv), kv, f"revision {kv.mod_revision}: {error.reason}")
            return
        if version := other_version(action.api_version):
            self._note(OTHER_VERSION, kv, f"revision {kv.mod_revision}: {version}")
        self._codecs[codec.name] += 1
        if namespace:
            held = FINALIZER_RECORD in action.metadata.finalizers
            self._api_server.take(kv, namespace, held=held)
        if action.phase.is_terminal:
            self._terminal += 1
            if action.is_recorded:
                self._recorded += 1
            else:
                self._note(WAITING, kv, f"{action.phase.name} since revision {kv.mod_revision}")
        elif right := self._elsewhere(action, namespace):
            self._note(ELSEWHERE, kv, f"{action.phase.name}, belongs in {right}")
        elif action.phase is Phase.WAITING_FOR_RESOURCES:
            for condition in action.status.conditions:
                if condition.message.startswith(NO_WORKER_FITS):
                    self._note(NO_WORKER, kv, condition.message)
                    break

    def _note(self, kind: Kind, kv: KeyValue, text: str) -> None:
        self._examples[kind.id].add(kv.key, text)

    def _elsewhere(self, action: ActionObject, namespace: str) -> str:
        """The namespace where an action belongs; empty if it is in this one."""
        template = self._subject.template
        if template is None or not namespace:
            return ""
        try:
            right = template.namespace_of(action.spec.project, action.spec.domain)
        except InvalidArgument:
            return "no namespace"
        return "" if right == namespace else right

    def findings(self) -> Iterator[Finding]:
        forms = ", ".join(f"{count} in {name}" for name, count in sorted(self._codecs.items()))
        yield ACTIONS.found(
            f"{self.values} keys with {size_text(self._size)} of values"
            + (f" ({forms})" if forms else "")
            + f"; {self._terminal} actions are terminal, and {self._recorded} of them recorded"
        )
        for kind in _WITH_EXAMPLES:
            examples = self._examples[kind.id]
            if examples.count:
                key = as_text(self._largest[1]) if kind is LARGE else examples.first
                yield kind.found(str(examples), key=key)
        if len(self._codecs) > 1:
            yield MIXED_CODECS.found(forms)


def _unreadable(kv: KeyValue) -> Kind:
    """The kind of a value that cannot be decoded."""
    if kv.value.startswith(ENCRYPTED_AT_REST):
        return ENCRYPTED
    try:
        tree = codec_of(kv.value).decode_tree(kv.value)
    except DecodeError:
        return UNDECODABLE
    api_version = tree.get("apiVersion")
    if is_task_action(api_version, tree.get("kind")) and other_version(api_version):
        return UNREADABLE_VERSION
    return UNDECODABLE


async def check_objects(subject: Subject, etcd: EtcdClient, api_server: ApiServer) -> list[Finding]:
    """Read every value below the prefix in pages, within the limit of time.

    Signs of an API server on the same etcd are left in ``api_server``.
    """
    tally = _Tally(subject, api_server)
    scanned = await scan(etcd, subject.keys, subject.limits.scan_seconds, tally.take)
    findings = list(tally.findings())
    if not scanned.complete:
        read = f"{tally.values} of {scanned.total or 'an unknown number of'} keys were read"
        findings.append(NOT_ALL.found(read))
    return findings
