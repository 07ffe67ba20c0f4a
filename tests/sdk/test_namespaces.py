"""Two projects run one program under one name at once, each on its own inputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from etcd_actions import ActionId, Phase, open_actions_client
from etcd_actions.etcd.api import Etcd
from tests.cli.command import Running, running
from tests.sdk.service import PROGRAMS, Site, free_port
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow

TEMPLATE = "{project}-{domain}"
RUN = "rboth"
# Width of the tree, and what comes out of it.
PROJECTS = {"one": (2, 4), "two": (3, 12)}


@pytest.fixture
def site(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> Iterator[Site]:
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    site.common += ("--namespace-template", TEMPLATE)
    yield site
    site.end_all()


def submit(site: Site, project: str, *flags: str) -> Any:
    width, _ = PROJECTS[project]
    directory = site.directory / project
    directory.mkdir()
    return running(
        directory,
        "submit",
        f"{PROGRAMS / 'many.py'}:tree",
        "--input",
        "branches=1",
        "--input",
        f"width={width}",
        "--input",
        f"directory={directory}",
        "--project",
        project,
        "--run",
        RUN,
        "--output-base",
        directory / "runs",
        *flags,
        *site.common,
        *site.python,
    )


@pytest.mark.parametrize("through_the_service", [False, True], ids=["etcd", "service"])
async def test_two_projects_runs_of_one_name_both_come_to_their_own_results(
    site: Site, etcd: Etcd, prefix: bytes, through_the_service: bool
) -> None:
    """With the local executor; neither takes the other's parents, children, inputs or outputs."""
    port = free_port()
    service = ("--service", f"127.0.0.1:{port}") if through_the_service else ()
    with ExitStack() as stack:
        running_service = stack.enter_context(site.service(port))
        await running_service.logged("serving")
        submissions: dict[str, Running] = {
            project: stack.enter_context(submit(site, project, *service)) for project in PROJECTS
        }
        for project, (_, expected) in PROJECTS.items():
            submission = submissions[project]
            assert await submission.wait() == 0, submission.err
            assert submission.rows()[-1] == {"result": expected}
        async with open_actions_client(etcd, prefix=prefix, namespace_template=TEMPLATE) as client:
            for project, (width, _) in PROJECTS.items():
                root = ActionId(project, "development", RUN, "a0")
                actions = (await client.list_run_actions(root.run_id)).actions
                # The root, its branch, and the leaves.
                assert len(actions) == 2 + width
                for action in actions:
                    assert action.metadata.namespace == f"{project}-development"
                    assert action.phase is Phase.SUCCEEDED
                    assert action.action_id.project == project
                starts = (site.directory / project / "starts").read_text().split()
                assert len(starts) == 2 * (2 + width)
