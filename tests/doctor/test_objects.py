"""Values and keys that are no actions, or wait for something."""

from __future__ import annotations

from dataclasses import replace

import pytest

from etcd_actions import ActionId, ActionStatus, Phase, open_actions_client
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.codecs import CODEC_NAMES, codec_named, msgpack
from etcd_actions.codecs import json as json_codec
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import NO_WORKER_FITS, NamespaceTemplate
from etcd_actions.testing import EtcdServer
from tests.doctor.illness import UNHURRIED, diagnose, taskaction
from tests.support import flyte
from tests.support.everyday import first_everyday


@pytest.fixture
def endpoint(shared_etcd: EtcdServer) -> str:
    return shared_etcd.endpoint


async def test_what_is_well(etcd: Etcd, endpoint: str, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/r-a0", taskaction("r", "a0"))
    await etcd.put(prefix + b"flyte/r-b", taskaction("r", "b", phase="Succeeded", recorded=True))
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert diagnosis.ill == set()
    seen = diagnosis.one("actions").seen
    assert "2 keys" in seen
    assert "1 actions are terminal, and 1 of them recorded" in seen


async def test_undecodable_values(etcd: Etcd, endpoint: str, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/r-a0", taskaction("r", "a0"))
    broken = await etcd.put(prefix + b"flyte/r-b", b'{"kind":')
    for number in range(4):
        await etcd.put(prefix + f"flyte/r-{number}".encode(), b"")
    diagnosis = await diagnose(endpoint, prefix=prefix, limits=replace(UNHURRIED, examples=6))
    assert diagnosis.ill == {"undecodable"}
    finding = diagnosis.one("undecodable")
    assert finding.seen.startswith("5: ")
    assert f"flyte/r-b (revision {broken.revision}: " in finding.seen
    assert diagnosis.code is ExitCode.ERRORS
    few = (await diagnose(endpoint, prefix=prefix, limits=replace(UNHURRIED, examples=1))).one(
        "undecodable"
    )
    assert few.seen.endswith("; and 4 more")
    assert f"etcdctl get '{prefix.decode()}flyte/r-0'" in few.remedy


async def test_values_that_an_api_server_encrypts_are_never_to_be_deleted(
    etcd: Etcd, endpoint: str, prefix: bytes
) -> None:
    for number in range(3):
        key = prefix + f"flyte/r-{number}".encode()
        await etcd.put(key, b"k8s:enc:aescbc:v1:key1:\x01\x02")
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert diagnosis.ill == {"encrypted-values"}
    finding = diagnosis.one("encrypted-values")
    assert finding.seen.startswith("3: ")
    assert "encrypted at rest by a Kubernetes API server" in finding.seen
    assert "etcd-actions release-finalizers" in finding.remedy
    assert "--finalizer=false" in finding.remedy
    assert "delete" not in finding.remedy
    assert diagnosis.code is ExitCode.ERRORS


@pytest.mark.parametrize("form", first_everyday(CODEC_NAMES))
async def test_objects_at_another_version_are_named_and_never_to_be_deleted(
    etcd: Etcd, endpoint: str, prefix: bytes, form: str
) -> None:
    """Those that can be read are a note; those that cannot are an error, with another remedy."""
    codec = codec_named(form)
    for name, tree in (
        ("good", {"apiVersion": "flyte.org/v1beta1"}),
        ("bad", {"apiVersion": "flyte.org/v2", "spec": {"steps": []}}),
    ):
        stored = {**json_codec.decode_tree(taskaction("r", name)), **tree}
        await etcd.put(prefix + f"flyte/r-{name}".encode(), codec.encode_tree(stored))
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert diagnosis.ill == {"other-version", "undecodable-version"}
    good, bad = diagnosis.one("other-version"), diagnosis.one("undecodable-version")
    assert "flyte/r-good (revision" in good.seen
    assert "flyte.org/v1beta1" in good.seen
    assert "flyte/r-bad (revision" in bad.seen
    assert "stored at flyte.org/v2, and this etcd-actions knows flyte.org/v1" in bad.seen
    for finding in (good, bad):
        assert "delete" not in finding.remedy
        assert " del " not in finding.remedy
    assert diagnosis.code is ExitCode.ERRORS


async def test_another_kind_is_undecodable_and_said_to_be_another(
    etcd: Etcd, endpoint: str, prefix: bytes
) -> None:
    await etcd.put(prefix + b"flyte/r-a0", b'{"apiVersion":"v1","kind":"Pod","metadata":{}}')
    finding = (await diagnose(endpoint, prefix=prefix)).one("undecodable")
    assert "a Pod of v1, and no TaskAction of flyte.org" in finding.seen


async def test_another_codec_beside_json(etcd: Etcd, endpoint: str, prefix: bytes) -> None:
    stored = taskaction("r", "a0")
    await etcd.put(prefix + b"flyte/r-a0", stored)
    other = msgpack.encode_tree(json_codec.decode_tree(stored))
    await etcd.put(prefix + b"flyte/r-b", other)
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert diagnosis.ill == {"mixed-codecs"}
    finding = diagnosis.one("mixed-codecs")
    assert finding.seen == "1 in json, 1 in msgpack"
    assert "--codec json" in finding.remedy
    assert diagnosis.code is ExitCode.WARNINGS


async def test_endings_that_wait(etcd: Etcd, endpoint: str, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/r-a0", taskaction("r", "a0", phase="Failed"))
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert diagnosis.ill == {"unrecorded-endings"}
    finding = diagnosis.one("unrecorded-endings")
    assert "FAILED since revision" in finding.seen
    assert "etcd-actions list --unrecorded" in finding.remedy


async def test_open_actions_outside_their_namespaces(
    etcd: Etcd, endpoint: str, prefix: bytes
) -> None:
    """What was there before a template was switched on; what is over harms nobody."""
    action = json_codec.decode(taskaction("r", "a0"))
    right = f"{action.spec.project}-{action.spec.domain}"
    await etcd.put(prefix + f"{right}/r-a0".encode(), taskaction("r", "a0"))
    await etcd.put(prefix + b"flyte/r-b", taskaction("r", "b", phase="Succeeded", recorded=True))
    template = NamespaceTemplate("{project}-{domain}")
    assert (await diagnose(endpoint, prefix=prefix, template=template)).ill == set()
    await etcd.put(prefix + b"flyte/r-c", taskaction("r", "c"))
    assert (await diagnose(endpoint, prefix=prefix)).ill == set()
    diagnosis = await diagnose(endpoint, prefix=prefix, template=template)
    assert diagnosis.ill == {"other-namespaces"}
    finding = diagnosis.one("other-namespaces")
    assert f"flyte/r-c (RUNNING, belongs in {right})" in finding.seen
    assert "--namespace <namespace>" in finding.remedy
    assert diagnosis.code is ExitCode.WARNINGS


async def test_large_values(etcd: Etcd, endpoint: str, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/r-a0", taskaction("r", "a0", message="x" * 1_200_000))
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert diagnosis.ill == {"large-values"}
    assert "1.1 MiB" in diagnosis.one("large-values").seen
    assert f"'{prefix.decode()}flyte/r-a0'" in diagnosis.one("large-values").remedy
    assert diagnosis.code is ExitCode.WARNINGS


@pytest.mark.parametrize("key", first_everyday([b"alone", b"a/b/c", b"flyte/", b"flyte/\xff"], 2))
async def test_odd_keys(etcd: Etcd, endpoint: str, prefix: bytes, key: bytes) -> None:
    await etcd.put(prefix + key, taskaction("r", "a0"))
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert diagnosis.ill == {"odd-keys"}
    assert "etcdctl del" in diagnosis.one("odd-keys").remedy
    assert diagnosis.code is ExitCode.WARNINGS


async def test_time_is_up(etcd: Etcd, endpoint: str, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/r-a0", taskaction("r", "a0"))
    diagnosis = await diagnose(endpoint, prefix=prefix, limits=replace(UNHURRIED, scan_seconds=0.0))
    assert diagnosis.ill == {"values-not-all-read"}


async def test_actions_that_no_worker_fits(etcd: Etcd, endpoint: str, prefix: bytes) -> None:
    root = ActionId("p", "d", "r1", "a0")
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.enqueue(flyte.task(root))
        await client.put_status(
            root,
            1,
            ActionStatus(Phase.WAITING_FOR_RESOURCES),
            message=f"{NO_WORKER_FITS}: start one with --gpus 2",
        )
    diagnosis = await diagnose(endpoint, prefix=prefix)
    assert "no-worker-fits" in diagnosis.ill
    assert "--gpus 2" in diagnosis.one("no-worker-fits").seen
