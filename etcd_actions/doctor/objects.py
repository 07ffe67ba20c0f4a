"""What is below the prefix: actions, and what is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import trio

from etcd_actions.codecs import ENCRYPTED_AT_REST, codec_of
from etcd_actions.doctor.beside import Beside
from etcd_actions.doctor.findings import Finding, Kind, Severity
from etcd_actions.doctor.subject import Subject, as_text, size_text
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyValue
from etcd_actions.etcd.paging import open_pages
from etcd_actions.model import (
    FINALIZER_RECORD,
    ActionObject,
    NamespaceTemplate,
    is_task_action,
    other_version,
    parse_key,
)

ACTIONS = Kind(id="actions", severity=Severity.OK)
UNDECODABLE = Kind(
    id="undecodable",
    severity=Severity.ERROR,
    meaning="These actions are neither told to anybody nor marked: their runs wait for ever.",
    remedy="etcdctl get '<key>' --print-value-only, then let its writer write it as JSON, or "
    "delete it",
)
OTHER_VERSION = Kind(
    id="other-version",
    severity=Severity.NOTE,
    meaning="An API server stores them at another version of the API than the known one. What they "
    "have of the known fields is read, and every write keeps the version and all the rest.",
    remedy="nothing has to be done; see which version is stored: kubectl get crd "
    "taskactions.flyte.org -o yaml, and update etcd-actions where it is newer",
)
UNREADABLE_VERSION = Kind(
    id="undecodable-version",
    severity=Severity.ERROR,
    meaning="These are actions, stored at another version of the API, some fields of which are not "
    "as in the known one: they are neither told to anybody nor marked until they can be read.",
    remedy="update etcd-actions to a release that knows this version; or have the API server store "
    "flyte.org/v1 again, and write them anew: kubectl get taskactions.flyte.org -A -o json | "
    "kubectl replace -f -",
)
ENCRYPTED = Kind(
    id="encrypted-values",
    severity=Severity.ERROR,
    meaning="An API server encrypts these actions at rest, and nobody else can read them: they are "
    "neither told to anybody nor marked, and those that hold our finalizer are never let go.",
    remedy="take taskactions.flyte.org out of the API server's --encryption-provider-config and "
    "write them anew: kubectl get taskactions.flyte.org -A -o json | kubectl replace -f -; where "
    "they stay encrypted run with --finalizer=false, and have the API server let go of them: "
    "etcd-actions release-finalizers",
)
MIXED_CODECS = Kind(
    id="mixed-codecs",
    severity=Severity.WARNING,
    meaning="A Kubernetes API server reads its own JSON only: one value in another form and its "
    "lists of the whole namespace fail.",
    remedy="have every writer below this prefix use --codec json, or keep API servers away from it",
)
ODD_KEYS = Kind(
    id="odd-keys",
    severity=Severity.WARNING,
    meaning="The keys are not <prefix><namespace>/<name>: no action can have them, and a "
    "Kubernetes API server stumbles over them.",
    remedy="see whether --prefix is right; else delete them: etcdctl del '<key>'",
)
ELSEWHERE = Kind(
    id="other-namespaces",
    severity=Severity.WARNING,
    meaning="--namespace-template names another namespace for these actions, which are not over: "
    "nobody finds them by their names, no executor runs them, and nothing can be enqueued below "
    "them.",
    remedy="let them end without the template first; or end them, each root in its namespace: "
    "etcd-actions abort <project>/<domain>/<run>/a0 --namespace <namespace>",
)
LARGE = Kind(
    id="large-values",
    severity=Severity.WARNING,
    meaning="A value that grows above etcd's --max-request-bytes (1.5 MiB unless told otherwise) "
    "cannot be written any more: no mark can be made.",
    remedy="raise --max-request-bytes, or have the writer keep less in it; the largest is '<key>'",
)
WAITING = Kind(
    id="unrecorded-endings",
    severity=Severity.NOTE,
    meaning="These actions are over, and wait for the run service to accept that. Where nothing "
    "runs, or for longer than minutes, it is worth a look.",
    remedy="etcd-actions list --unrecorded; see that etcd-actions run is running, and what its "
    "log says",
)
NOT_ALL = Kind(
    id="values-not-all-read",
    severity=Severity.NOTE,
    meaning="Of the other values nothing is said.",
    remedy="give --namespace to look at a part",
)

KINDS = (
    ACTIONS,
    UNDECODABLE,
    UNREADABLE_VERSION,
    ENCRYPTED,
    OTHER_VERSION,
    MIXED_CODECS,
    ODD_KEYS,
    ELSEWHERE,
    LARGE,
    WAITING,
    NOT_ALL,
)

_BY_KEY = (
    UNDECODABLE,
    UNREADABLE_VERSION,
    ENCRYPTED,
    OTHER_VERSION,
    ODD_KEYS,
    ELSEWHERE,
    WAITING,
    LARGE,
)
"""What is told with its first keys."""
_PAGE_BYTES = 4 << 20
_BATCH = 100


@dataclass
class _Tally:
    """What was counted; of the keys only a few are kept."""

    examples: int
    large_value: int
    beside: Beside
    template: NamespaceTemplate | None = None
    values: int = 0
    terminal: int = 0
    recorded: int = 0
    size: int = 0
    oldest_waiting: int = 0
    largest: KeyValue | None = None
    codecs: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    named: dict[str, list[tuple[bytes, str]]] = field(default_factory=dict)

    def note(self, kind: Kind, key: bytes, text: str) -> None:
        """Count a key, and keep it if it is among the first."""
        self.counts[kind.id] += 1
        named = self.named.setdefault(kind.id, [])
        if len(named) < self.examples:
            named.append((key, text))

    def take(self, prefix: bytes, kv: KeyValue) -> None:
        """Look at one key and its value."""
        self.values += 1
        size = len(kv.value)
        self.size += size
        if size >= self.large_value:
            self.note(LARGE, kv.key, size_text(size))
            if self.largest is None or size > len(self.largest.value):
                self.largest = kv
        namespace = ""
        try:
            namespace, _ = parse_key(prefix, kv.key)
        except DecodeError:
            self.note(ODD_KEYS, kv.key, f"revision {kv.mod_revision}")
        codec = codec_of(kv.value)
        try:
            action = codec.decode(kv.value, key=kv.key, revision=kv.mod_revision)
        except DecodeError as error:
            self.note(_unreadable(kv), kv.key, f"revision {kv.mod_revision}: {error.reason}")
            return
        if version := other_version(action.api_version):
            self.note(OTHER_VERSION, kv.key, f"revision {kv.mod_revision}: {version}")
        self.codecs[codec.name] += 1
        if namespace:
            held = FINALIZER_RECORD in action.metadata.finalizers
            self.beside.take(kv, namespace, held=held)
        if action.phase.is_terminal:
            self.terminal += 1
            if action.is_recorded:
                self.recorded += 1
            else:
                self.note(WAITING, kv.key, f"{action.phase.name} since revision {kv.mod_revision}")
        elif wanted := self._elsewhere(action, namespace):
            self.note(ELSEWHERE, kv.key, f"{action.phase.name}, belongs into {wanted}")

    def _elsewhere(self, action: ActionObject, namespace: str) -> str:
        """Where an action belongs that is in this namespace; empty where that is right."""
        if self.template is None or not namespace:
            return ""
        try:
            wanted = self.template.namespace_of(action.spec.project, action.spec.domain)
        except InvalidArgument:
            return "no namespace"
        return "" if wanted == namespace else wanted

    def seen(self, kind: Kind) -> str:
        """The number of keys of a kind, and the first of them."""
        count = self.counts[kind.id]
        named = self.named[kind.id]
        first = "; ".join(f"{as_text(key)} ({text})" for key, text in named)
        rest = f"; and {count - len(named)} more" if count > len(named) else ""
        return f"{count}: {first}{rest}"


def _unreadable(kv: KeyValue) -> Kind:
    """What kind of finding a value is that cannot be decoded."""
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


async def check_objects(subject: Subject, etcd: EtcdClient, beside: Beside) -> list[Finding]:
    """Read every value below the prefix, page by page, for as long as the limits let.

    What they tell of an API server beside us is left in ``beside``.
    """
    limits = subject.limits
    tally = _Tally(limits.examples, limits.large_value, beside, subject.template)
    total = 0
    with trio.move_on_after(subject.limits.scan_seconds) as scope:
        async with open_pages(etcd, subject.keys, page_bytes=_PAGE_BYTES) as pages:
            async for page in pages:
                total = total or page.total
                for number, kv in enumerate(page.kvs):
                    tally.take(subject.prefix, kv)
                    if number % _BATCH == 0:
                        await trio.lowlevel.checkpoint()
    return list(_judge(tally, total, cut=scope.cancelled_caught))


def _judge(tally: _Tally, total: int, *, cut: bool) -> Iterator[Finding]:
    forms = ", ".join(f"{count} in {name}" for name, count in sorted(tally.codecs.items()))
    yield ACTIONS.found(
        f"{tally.values} keys with {size_text(tally.size)} of values"
        + (f" ({forms})" if forms else "")
        + f"; {tally.terminal} actions are over, and {tally.recorded} of them recorded"
    )
    for kind in _BY_KEY:
        if tally.counts[kind.id]:
            first = tally.named[kind.id][0][0]
            if kind is LARGE and tally.largest is not None:
                first = tally.largest.key
            yield kind.found(tally.seen(kind), key=as_text(first))
    if len(tally.codecs) > 1:
        yield MIXED_CODECS.found(forms)
    if cut:
        yield NOT_ALL.found(f"{tally.values} of {total or 'an unknown number of'} keys were read")
