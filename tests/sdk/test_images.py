"""The SDK's own definition of an image, and its own task, in the environment made of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from flyteidl2.task.common_pb2 import Inputs
from flyteidl2.task.task_definition_pb2 import TaskSpec

from etcd_actions import open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.images import (
    Executing,
    ImageBuilds,
    StoredImage,
    build_task_spec,
    is_build,
    parse_image,
    unsupported_parts,
)
from tests.cli.command import running
from tests.executor.wheels import make_wheel
from tests.sdk.service import PROGRAMS, Site, free_port
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow

DEFINES = """\
import pathlib, sys, flyte
from flyte._internal.imagebuild.remote_builder import _get_layers_proto
image = eval(sys.argv[1])
print(_get_layers_proto(image, pathlib.Path(sys.argv[2])).SerializeToString().hex())
"""


def defined(python: Path, image: str, context: Path) -> bytes:
    """What the SDK sends to the builder of images."""
    done = subprocess.run(
        [python, "-c", DEFINES, image, context], capture_output=True, text=True, check=True
    )
    return bytes.fromhex(done.stdout.split()[-1])


@pytest.fixture
def site(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> Iterator[Site]:
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    yield site
    site.end_all()


async def test_a_task_imports_a_package_of_its_image_and_has_its_secret(
    site: Site, etcd: Etcd, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> None:
    make_wheel(tmp_path / "wheels", "made_here", "VALUE = 42")
    image = (
        "flyte.Image.from_debian_base(install_flyte=False, name='n')"
        f".with_pip_packages('made_here', extra_args='--no-index --find-links {tmp_path}/wheels')"
        ".with_env_vars({'FROM_IMAGE': 'yes'})"
    )
    stored = StoredImage(name="n:t", spec=defined(sdk_python, image, tmp_path))
    async with open_actions_client(etcd, prefix=prefix) as client:
        reference = await client.images.put(stored)
    (tmp_path / "key").write_text("12345\n")
    with site.service(port := free_port(), "--secret", f"api-key=file:{tmp_path}/key") as service:
        await service.logged("serving")
        flags = [*site.common, *site.python, "--service", f"127.0.0.1:{port}"]
        with running(
            tmp_path / "notes",
            "submit",
            f"{PROGRAMS / 'packaged.py'}:value",
            "--output-base",
            tmp_path / "runs",
            *flags,
            IMAGE=str(reference),
        ) as submission:
            assert await submission.wait() == 0, submission.err
            assert submission.rows()[-1] == {"result": "42 5 yes"}


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("flyte.Image.from_debian_base()", ""),
        ("flyte.Image.from_debian_base(install_flyte=False)", ""),
        ("flyte.Image.from_debian_base().with_requirements('requirements.txt')", ""),
        ("flyte.Image.from_debian_base().with_apt_packages('vim')", "'vim'"),
        ("flyte.Image.from_debian_base().with_commands(['ls'])", "'ls'"),
        ("flyte.Image.from_debian_base(python_version=(3, 13))", "has Python 3.13"),
        ("flyte.Image.from_base('a/b:1').clone(name='n', extendable=True)", "'a/b:1'"),
    ],
)
def test_what_the_sdk_defines_is_read_and_only_what_is_lacking_is_refused(
    image: str,
    problem: str,
    sdk_python: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The SDK's own lower layers, such as the user that it makes, are no problem."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text("made_here\n")
    (tmp_path / "context").mkdir()
    found = parse_image(defined(sdk_python, image, tmp_path / "context"))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    problems = unsupported_parts(found, version)
    assert [problem in each.what for each in problems] == ([True] if problem else [])


ASKS = """\
import asyncio, sys
from flyte._internal.runtime.convert import convert_from_native_to_inputs
from flyte.remote._task import TaskDetails
from flyteidl2.task.task_definition_pb2 import TaskDetails as Message, TaskSpec
spec = TaskSpec.FromString(bytes.fromhex(sys.argv[1]))
task = TaskDetails(Message(spec=spec)).override(secrets=[])
assert task.overridden
given = {"spec": "/uploads/spec.pb", "context": "", "target_image": "n:t"}
inputs = asyncio.run(convert_from_native_to_inputs(task.interface, **given))
print(task.pb2.spec.SerializeToString().hex(), inputs.proto_inputs.SerializeToString().hex())
"""

READS = """\
import sys
from types import SimpleNamespace
from flyte._internal.imagebuild.remote_builder import _get_fully_qualified_image_name
from flyteidl2.task.common_pb2 import Outputs
outputs = Outputs.FromString(bytes.fromhex(sys.argv[1]))
print(_get_fully_qualified_image_name(SimpleNamespace(pb2=outputs)))
"""


async def test_the_sdks_builder_asks_in_a_way_that_is_understood_and_reads_the_answer(
    etcd: Etcd, prefix: bytes, sdk_python: Path, tmp_path: Path
) -> None:
    """The SDK's own code makes the run's inputs of our task, and reads its outputs."""

    def say(program: str, argument: bytes) -> list[str]:
        done = subprocess.run(
            [sdk_python, "-c", program, argument.hex()], capture_output=True, text=True, check=True
        )
        return done.stdout.split()

    async def read(uri: str, most: int) -> bytes:
        assert uri == "/uploads/spec.pb"
        return defined(
            sdk_python, "flyte.Image.from_debian_base().with_pip_packages('a')", tmp_path
        )

    async def exists(uri: str) -> bool:
        raise AssertionError(uri)

    asked, inputs = say(ASKS, build_task_spec().SerializeToString())
    # The SDK sends the task itself, not its name, since it has changed it.
    assert is_build(TaskSpec.FromString(bytes.fromhex(asked)))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    async with open_actions_client(etcd, prefix=prefix) as client:
        builds = ImageBuilds(client.images, read, exists, Executing(version, has_uv=False))
        run = await builds.task_spec(Inputs.FromString(bytes.fromhex(inputs)))
        found = await builds.find("n:t")
    written = tmp_path / "a b"
    arguments = [
        each.replace("{{.outputPrefix}}", written.as_uri())
        for each in run.task_template.container.args
    ]
    subprocess.run([sys.executable, *arguments[1:]], check=True, capture_output=True)
    assert say(READS, (written / "outputs.pb").read_bytes()) == [found]
