"""What a task of the SDK finds ready when its process is forked, and what it finds as it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trustme

from etcd_actions import ActionId, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor.supervision import supervisor
from tests.executor.tasks import until
from tests.sdk.service import Site, free_port
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow

READY = f"""
import json, sys
sys.path.insert(0, {str(Path(supervisor.__file__).parent)!r})
import fork_server_main as server
server._prepare(server._sibling("ready_tls"))
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture
def site(
    shared_etcd: EtcdServer,
    prefix: bytes,
    tmp_path: Path,
    sdk_python: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    authority = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(authority)
    # The program is read by submit: what a task is to have in its environment comes from there.
    monkeypatch.setenv("AUTHORITY", str(authority))
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    yield site
    site.end_all()


async def seen(site: Site, etcd: Etcd, prefix: bytes, task: str, name: str) -> dict[str, Any]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        with site.service(free_port()) as service:
            await service.logged("serving")
            await site.submit("starting.py", task, f"directory={site.notes}", run="r1")
            with trio.fail_after(120):
                root = await until(client, ActionId("flytesnacks", "development", "r1", "a0"))
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    told: dict[str, Any] = json.loads((site.notes / name).read_text())
    assert told["verifies"]
    assert told["authorities"] == told["expected"]
    return told


async def test_a_task_imports_its_program_alone_and_reads_no_authorities(
    site: Site, etcd: Etcd, prefix: bytes, sdk_python: Path
) -> None:
    told = await seen(site, etcd, prefix, "at_the_start", "plain")
    ready = await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sdk_python, "-c", READY], capture_output=True, check=True, timeout=120
        )
    )
    late = set(told["imported"]) - set(json.loads(ready.stdout))
    assert late == {"starting"}
    # The SDK took some, and the task's own client the next.
    assert told["left"] in (1, 2, 3)
    assert told["taken"] == 1
    assert len(told["authorities"]) > 50
    assert told["propagated"] == ["baggage", "traceparent", "tracestate"]


async def test_what_a_task_s_environment_says_counts(site: Site, etcd: Etcd, prefix: bytes) -> None:
    told = await seen(site, etcd, prefix, "otherwise", "changed")
    assert (told["left"], told["taken"]) == (4, 0)
    assert len(told["authorities"]) == 1
    assert told["propagated"] == []
