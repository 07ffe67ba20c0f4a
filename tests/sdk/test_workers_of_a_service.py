"""The SDK in tasks of a worker that has a token of the service, and no etcd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trio

from etcd_actions import Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.cli.command import running, until
from tests.sdk.ray_programs import RUN, ended
from tests.sdk.service import Site, free_port
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow


@pytest.fixture
def site(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> Iterator[Site]:
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    site.executor = ("--executor", "none")
    site.state_dir.mkdir()
    yield site
    site.end_all()


async def test_a_task_that_starts_a_run_fails_at_once_and_names_the_remedy(
    site: Site, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    """UNAVAILABLE would be repeated by the SDK; the actions of its own run are no problem."""
    (tmp_path / "tokens").write_text("of-clients\nof-workers name=w role=worker\n")
    (tmp_path / "token").write_text("of-workers\n")
    (tmp_path / "worker").mkdir()
    with trio.fail_after(150), ExitStack() as stack:
        access = ("--worker-access", "--token-file", str(tmp_path / "tokens"))
        service = stack.enter_context(site.service(port := free_port(), *access))
        await service.logged("serving")
        worker = stack.enter_context(
            running(
                tmp_path / "worker",
                "worker",
                *("--service", f"127.0.0.1:{port}", "--service-token-file", tmp_path / "token"),
                *("--prefix", prefix.decode(), *site.python),
                *("--executor-state-dir", site.state_dir / "w", "--blob-dir", tmp_path / "blobs"),
                *("--log-format", "json"),
            )
        )
        await worker.logged("working")
        await site.submit("nested_run.py", "main", run=RUN)
        async with open_actions_client(etcd, prefix=prefix) as client:
            root = await ended(client)
        assert root.phase is Phase.FAILED
        error = root.status.error_state
        assert error is not None
        assert "run the task on a worker with --endpoints" in error.message
        # The worker logs an end after it has written it.
        await until(lambda: len(worker.logs("action_ended")) == 2)
        ends = {each["action"]: each["phase"] for each in worker.logs("action_ended")}
        assert sorted(ends.values()) == ["FAILED", "SUCCEEDED"]
