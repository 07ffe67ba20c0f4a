"""What the doctor says of a Kubernetes API server that keeps its objects on the same etcd."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest

from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.codecs import json as json_codec
from etcd_actions.doctor.api_server import ApiServer
from etcd_actions.doctor.kubernetes import is_terminating
from etcd_actions.errors import PermissionDenied
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import FINALIZER_RECORD
from etcd_actions.testing import EtcdServer
from tests.data.captured import PUTS
from tests.doctor.illness import Diagnosis, diagnose, taskaction
from tests.support.everyday import first_everyday

HEALTHY = {"metadata": {"name": "x"}, "status": {"phase": "Active"}}
ENCRYPTED = b"k8s:enc:aescbc:v1:key1:\x8b\x01"
CRD = "apiextensions.k8s.io/customresourcedefinitions/taskactions.flyte.org"


def field(number: int, data: bytes | str | int) -> bytes:
    """A field of a message in protobuf, with a length or a number."""
    if isinstance(data, int):
        return bytes([number << 3, data])
    data = data.encode() if isinstance(data, str) else data
    length, head = len(data), bytearray(varint(number << 3 | 2))
    return bytes(head + varint(length) + data)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def stored(kind: str, raw: bytes, *, version: str = "v1", encoding: str = "") -> bytes:
    """A built-in object as an API server stores it."""
    type_meta = field(1, version) + field(2, kind)
    unknown = field(1, type_meta) + field(2, raw) + field(3, encoding) + field(4, "")
    return b"k8s\0" + unknown


def namespace(name: str = "flyte", phase: str = "Active", *, deleting: bool = False) -> bytes:
    """A Namespace: metadata with its creation, labels and managed fields, spec and status."""
    seconds = field(1, varint(1)) if deleting else b""
    metadata = (
        field(1, name)
        + field(5, "0d7f6a52-2ad1-4c1d-8a8f-d1d2f9d5e1a0")
        + field(7, 3)
        + field(8, bytes([1 << 3, 5]))
        + (field(9, seconds) if deleting else b"")
        + field(11, field(1, "kubernetes.io/metadata.name") + field(2, name))
        + field(17, field(1, "kube-apiserver") + field(7, field(1, "{}" * 200)))
    )
    return stored(
        "Namespace",
        field(1, metadata) + field(2, field(1, "kubernetes")) + field(3, field(1, phase)),
    )


def crd(*, deleting: bool = False, condition: str = "") -> bytes:
    """A CRD, as JSON, which an API server stores it in."""
    conditions = [{"type": "Established", "status": "True"}]
    if condition:
        conditions.append({"type": "Terminating", "status": condition})
    metadata: dict[str, Any] = {"name": "taskactions.flyte.org"}
    if deleting:
        metadata["deletionTimestamp"] = "2026-11-28T00:00:00Z"
    tree = {
        "kind": "CustomResourceDefinition",
        "apiVersion": "apiextensions.k8s.io/v1beta1",
        "metadata": metadata,
        "status": {"conditions": conditions, "storedVersions": ["v1"]},
    }
    return json.dumps(tree).encode() + b"\n"


class Site:
    """An etcd with an API server's keys below a prefix of its own."""

    def __init__(self, etcd: Etcd, endpoint: str, root: bytes) -> None:
        self._etcd = etcd
        self._endpoint = endpoint
        self.root = root
        self.prefix = root + b"flyte.org/taskactions/"

    async def put(self, objects: dict[str, bytes]) -> None:
        for name, value in objects.items():
            await self._etcd.put(self.root + name.encode(), value)

    async def diagnose(self) -> Diagnosis:
        return await diagnose(self._endpoint, prefix=self.prefix)


@pytest.fixture
def site(etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes) -> Site:
    return Site(etcd, shared_etcd.endpoint, prefix + b"registry/")


FIT = {"masterleases/10.0.0.1": b"k8s\0", "namespaces/flyte": namespace(), CRD: crd()}


async def test_without_an_api_server_nothing_is_said_of_one(site: Site) -> None:
    action = held(taskaction("r", "a0"))
    await site.put({"flyte.org/taskactions/flyte/r-a0": action})
    diagnosis = await site.diagnose()
    assert diagnosis.ill == set()
    assert diagnosis.all("api-server") == []


async def test_a_fit_api_server_is_found(site: Site) -> None:
    await site.put({**FIT, "flyte.org/taskactions/flyte/r-a0": taskaction("r", "a0")})
    diagnosis = await site.diagnose()
    assert diagnosis.ill == set()
    seen = diagnosis.one("api-server").seen
    assert f"{site.root.decode()}masterleases/" in seen
    assert diagnosis.code is ExitCode.OK


def held(value: bytes) -> bytes:
    tree = json_codec.decode_tree(value)
    tree["metadata"]["finalizers"] = [FINALIZER_RECORD]
    return json_codec.encode_tree(tree)


async def test_our_finalizer_beside_an_api_server_recommends_the_setting(site: Site) -> None:
    action = held(taskaction("r", "a0"))
    await site.put({**FIT, "flyte.org/taskactions/flyte/r-a0": action})
    diagnosis = await site.diagnose()
    assert diagnosis.ill == {"finalizer-beside-api-server"}
    finding = diagnosis.one("finalizer-beside-api-server")
    assert finding.seen == f"1 hold our finalizer, such as {site.prefix.decode()}flyte/r-a0"
    assert "--finalizer=false" in finding.remedy
    assert "etcd-actions release-finalizers" in finding.remedy
    assert diagnosis.code is ExitCode.OK


async def test_captured_actions_tell_of_the_api_server_that_wrote_them(site: Site) -> None:
    """Their managed fields do, where none of its own keys is to be seen."""
    state = {put.key: put.value for put in PUTS}
    for key, value in state.items():
        name = key.rpartition(b"/taskactions/")[2].decode()
        await site.put({f"flyte.org/taskactions/{name}": value})
    diagnosis = await site.diagnose()
    assert "it wrote" in diagnosis.one("api-server").seen
    assert diagnosis.all("namespace-missing") == []


@pytest.mark.parametrize(
    ("value", "kind"),
    first_everyday(
        [
            (None, "namespace-missing"),
            (namespace(phase="Terminating"), "namespace-terminating"),
            (namespace(deleting=True), "namespace-terminating"),
            (
                json.dumps({"kind": "Namespace", "status": {"phase": "Terminating"}}).encode(),
                "namespace-terminating",
            ),
            (ENCRYPTED, "api-server-not-read"),
            (stored("Pod", b""), "api-server-not-read"),
            (stored("Namespace", b"", encoding="gzip"), "api-server-not-read"),
            (b"k8s\0\xff\xff\xff", "api-server-not-read"),
            (b"", "api-server-not-read"),
            (b"[" * 100_000, "api-server-not-read"),
        ],
        2,
    ),
)
async def test_a_namespace_that_takes_no_actions_is_warned_of(
    site: Site, value: bytes | None, kind: str
) -> None:
    """Of the one that enqueues go to, whether it has actions or not."""
    objects = {**FIT, "namespaces/default": namespace("default")}
    del objects["namespaces/flyte"]
    if value is not None:
        objects["namespaces/flyte"] = value
    await site.put(objects)
    diagnosis = await site.diagnose()
    assert diagnosis.ill == {kind}
    finding = diagnosis.one(kind)
    assert f"{site.root.decode()}namespaces/flyte" in finding.seen
    assert "flyte" in finding.remedy
    expected = ExitCode.OK if kind == "api-server-not-read" else ExitCode.WARNINGS
    assert diagnosis.code is expected


async def test_each_namespace_that_has_actions_is_looked_at(site: Site) -> None:
    for name in ("gone", "ending", "flyte"):
        await site.put({f"flyte.org/taskactions/{name}/r-a0": taskaction("r", "a0")})
    await site.put({**FIT, "namespaces/ending": namespace("ending", "Terminating")})
    diagnosis = await site.diagnose()
    assert diagnosis.ill == {"namespace-missing", "namespace-terminating"}
    assert "kubectl create namespace 'gone'" in diagnosis.one("namespace-missing").remedy
    assert "namespaces/ending" in diagnosis.one("namespace-terminating").seen


@pytest.mark.parametrize(
    ("value", "kind"),
    first_everyday(
        [
            (None, "crd-missing"),
            (crd(deleting=True), "crd-terminating"),
            (crd(condition="True"), "crd-terminating"),
            (crd(condition="False"), None),
            (
                stored(
                    "CustomResourceDefinition",
                    field(1, field(1, "x"))
                    + field(3, field(1, field(1, "Terminating") + field(2, "True"))),
                ),
                "crd-terminating",
            ),
            (ENCRYPTED, "api-server-not-read"),
        ],
        2,
    ),
)
async def test_a_crd_that_is_gone_or_going_is_told(
    site: Site, value: bytes | None, kind: str | None
) -> None:
    objects = {name: kept for name, kept in FIT.items() if name != CRD}
    if value is not None:
        objects[CRD] = value
    await site.put(objects)
    diagnosis = await site.diagnose()
    assert diagnosis.ill == ({kind} if kind else set())


async def test_what_may_not_be_read_beside_the_prefix_is_a_note() -> None:
    """A user with the least permissions reads the actions only; these tell what they can."""

    class Denied:
        async def range(self, *_: object, **__: object) -> object:
            raise PermissionDenied("etcdserver: permission denied")

    class Subject:
        prefix = b"/registry/flyte.org/taskactions/"
        namespace = None

    subject: Any = Subject()
    etcd: Any = Denied()
    assert await ApiServer().check(subject, etcd) == []
    api_server = ApiServer()
    kv: Any = PUTS[0]
    api_server.take(kv, "flyte", held=False)
    findings = await api_server.check(subject, etcd)
    assert [each.id for each in findings] == ["api-server", "api-server-not-read"]
    assert findings[1].remedy.startswith("kubectl get namespace 'flyte';")


@pytest.mark.parametrize("value", [namespace(), namespace(deleting=True), stored("Namespace", b"")])
def test_a_value_that_was_cut_off_is_read_or_refused(value: bytes) -> None:
    """Never anything but an answer, or a ValueError."""
    for end in range(len(value)):
        with suppress(ValueError):
            assert is_terminating(value[:end], "Namespace") in (True, False)
