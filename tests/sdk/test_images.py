"""The SDK's own definition of an image, and its own task, in the environment made of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_actions import open_actions_client
from etcd_actions.etcd.api import Etcd
from etcd_actions.images import StoredImage, parse_image, what_is_lacking
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
    problems = what_is_lacking(found, version)
    assert [problem in each.what for each in problems] == ([True] if problem else [])
