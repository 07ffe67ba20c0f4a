"""Nothing of ours imports grpcio: the library, and a process that serves and tells."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from etcd_actions.app.listeners import _NEEDED
from tests.cli.command import ROOT as PROJECT
from tests.cli.command import environment, finish, running
from tests.support.etcd_server import EtcdServer
from tests.support.run_service_server import RunServiceServer

ROOT = '{"actionId":{"run":{"org":"o","project":"p","domain":"d","name":"r1"},"name":"a0"},' + (
    '"inputUri":"s3://b/in","runOutputBase":"s3://b/out",'
    '"task":{"spec":{"taskTemplate":{"type":"python"},"shortName":"f"}}}'
)

REFUSED = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("grpc", "grpc_health", "grpc_reflection"):
            with open({path!r}, "a") as file:
                file.write(name + "\\n")
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
"""


@pytest.mark.slow
def test_the_library() -> None:
    """All public names, and the modules behind them."""
    code = (
        "import sys, etcd_actions\n"
        "[getattr(etcd_actions, name) for name in etcd_actions.__all__]\n"
        "import etcd_actions.run_service.grpc_run_service, etcd_actions.etcd.grpc.transport\n"
        "import etcd_actions.server, etcd_actions.cli.service_client\n"
        "print(*[name for name in sys.modules if name.partition('.')[0].startswith('grpc')])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_the_service_needs_only_what_its_extra_installs() -> None:
    """Else ``run`` serves nothing in an environment that has the extra alone."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    server = project["optional-dependencies"]["server"]
    assert {each.partition(">=")[0].replace("-", "_") for each in server} == set(_NEEDED)


def test_no_installation_brings_it() -> None:
    """Whatever the extras."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    assert [each for part in wanted for each in part if each.startswith("grpc")] == []


@pytest.mark.slow
async def test_a_process_that_serves_and_tells(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """It is refused to it, and never asked for; a command asks the service over gRPC."""
    asked = tmp_path / "asked"
    refuse = tmp_path / "refuse"
    refuse.mkdir()
    (refuse / "sitecustomize.py").write_text(REFUSED.format(path=str(asked)))
    paths = os.pathsep.join((str(refuse), environment()["PYTHONPATH"]))
    root = tmp_path / "root.json"
    root.write_text(ROOT)
    with (
        RunServiceServer() as run_service,
        running(
            tmp_path,
            "run",
            *("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()),
            *("--executor", "none", "--run-service", str(run_service.endpoint)),
            PYTHONPATH=paths,
        ) as process,
    ):
        listen = (await process.logged("serving"))["listen"]
        for command in (
            ("enqueue", root, "--service", listen),
            ("status", "p/d/r1/a0", "SUCCEEDED", "--service", listen),
        ):
            ended = finish(*command, PYTHONPATH=paths)
            assert ended.code == 0, ended.err
        await process.until(lambda: "status" in {told.what for told in run_service.told} or None)
        process.process.terminate()
        assert await process.wait() == 0, process.err
    assert not asked.exists(), asked.read_text()


def test_the_refusal_would_be_seen(tmp_path: Path) -> None:
    """Else the test before would say nothing."""
    asked = tmp_path / "asked"
    (tmp_path / "sitecustomize.py").write_text(REFUSED.format(path=str(asked)))
    env = environment(PYTHONPATH=str(tmp_path))
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run(
            [sys.executable, "-c", "import grpc"], check=True, capture_output=True, env=env
        )
    assert asked.read_text().split() == ["grpc"]
