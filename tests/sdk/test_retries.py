"""What the SDK sends as the back-off of retries is what the executor waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionId, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.executor.tasks import until
from tests.sdk.service import Site, free_port
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow


@pytest.fixture
def site(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> Iterator[Site]:
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    yield site
    site.end_all()


async def test_retries_are_put_off_as_the_task_says(site: Site, etcd: Etcd, prefix: bytes) -> None:
    async with open_actions_client(etcd, prefix=prefix) as client:
        with site.service(free_port()) as service:
            await service.logged("serving")
            await site.submit("retries.py", "main", f"directory={site.notes}", run="r1")
            with trio.fail_after(120):
                root = await until(client, ActionId("flytesnacks", "development", "r1", "a0"))
    assert root.phase is Phase.SUCCEEDED, root.status.error_state
    first, second, third = (
        float((site.notes / f"began-{attempt}").read_text()) for attempt in range(3)
    )
    assert second - first >= 2
    assert third - second >= 4
