"""Runs that build an image: what their creation checks, stores and starts, through the port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from flyteidl2.imagebuilder.definition_pb2 import AptPackages, ImageSpec, Layer, PipPackages
from flyteidl2.task.common_pb2 import Inputs
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions import ActionId, ActionsClient
from etcd_actions.app.image_uploads import ImageUploads
from etcd_actions.blobs import open_blob_store
from etcd_actions.images import Executing, ImageBuilds, build_task_spec
from etcd_actions.model import flyte
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from tests.images.test_builds import image, inputs
from tests.server.clients import Failed
from tests.server.conftest import LOOPBACK
from tests.server.front.run_calls import RunsAsker, run_id
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory(jumps=False)

PACKAGES = image(Layer(pip_packages=PipPackages(packages=["a"])))
SYSTEM = image(Layer(apt_packages=AptPackages(packages=["vim"])))


@pytest.fixture
async def builds(client: ActionsClient, tmp_path: Path) -> ImageBuilds:
    uploads = ImageUploads(open_blob_store(tmp_path / "blobs"))
    executing = Executing("3.11", has_uv=False)
    return ImageBuilds(client.images, uploads.read, uploads.exists, executing)


@pytest.fixture
async def asker(
    client: ActionsClient, builds: ImageBuilds, tmp_path: Path
) -> AsyncIterator[RunsAsker]:
    blobs = open_blob_store(tmp_path / "blobs")
    front = FrontDoor(client=client, keepalive=30, blobs=blobs, builds=builds)
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK), front=front) as server:
        yield RunsAsker(server)


def upload(directory: Path, name: str, data: bytes) -> str:
    path = directory / "blobs" / "uploads" / "p" / "d" / "named" / "x" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def build(uri: str, name: str = "r1") -> pb.CreateRunRequest:
    request = pb.CreateRunRequest(run_id=run_id(name), task_spec=build_task_spec())
    request.inputs.CopyFrom(inputs(spec=uri, context="", target_image="n:t"))
    return request


async def test_a_build_is_checked_kept_and_run_in_its_own_image(
    asker: RunsAsker, client: ActionsClient, builds: ImageBuilds, tmp_path: Path
) -> None:
    await asker("CreateRun", build(upload(tmp_path, "spec.pb", PACKAGES)))
    found = await builds.find("n:t")
    assert found is not None
    root = await client.get_task_action(ActionId("p", "d", "r1", "a0"))
    template = flyte.task_template(root)
    assert template is not None
    assert template.container.image == found
    # By inputs that were uploaded, too.
    request = build("", "r2")
    given: Inputs = inputs(spec=upload(tmp_path, "spec.pb", PACKAGES), target_image="m:t")
    uri = upload(tmp_path, "inputs.pb", given.SerializeToString())
    request.offloaded_input_data.uri = uri
    await asker("CreateRun", request)
    assert await builds.find("m:t") is not None


@pytest.mark.parametrize(
    ("data", "text"),
    first_everyday(
        [
            (SYSTEM, r"it installs packages of the system: 'vim'"),
            (b"\xff", "definition"),
            (None, "there is nothing at"),
            (ImageSpec(base_image="x" * (2 << 20)).SerializeToString(), "bytes"),
        ],
        2,
    ),
    ids=["packages of the system", "no message", "nothing", "too large"],
)
async def test_what_cannot_be_built_is_refused_and_nothing_is_created(
    asker: RunsAsker,
    client: ActionsClient,
    builds: ImageBuilds,
    tmp_path: Path,
    data: bytes | None,
    text: str,
) -> None:
    uri = upload(tmp_path, "spec.pb", data or b"")
    if data is None:
        Path(uri).unlink()
    with pytest.raises(Failed, match=text) as caught:
        await asker("CreateRun", build(uri))
    assert caught.value.code == "invalid_argument"
    assert await client.store.get(client.keys.run_record(ActionId("p", "d", "r1", "a0"))) is None
    assert await builds.find("n:t") is None


async def test_without_an_executor_a_build_is_refused(
    client: ActionsClient, tmp_path: Path
) -> None:
    front = FrontDoor(client=client, keepalive=30, blobs=open_blob_store(tmp_path / "blobs"))
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK), front=front) as server:
        with pytest.raises(Failed, match="--images") as caught:
            await RunsAsker(server)("CreateRun", build("/x"))
    assert caught.value.code == "unimplemented"


async def test_uploads_are_files_of_the_store_or_of_this_machine(tmp_path: Path) -> None:
    uploads = ImageUploads(open_blob_store(tmp_path / "blobs"))
    stored = upload(tmp_path, "spec.pb", b"12")
    beside = tmp_path / "beside"
    beside.write_bytes(b"345")
    assert await uploads.read(stored, 2) == b"12"
    assert await uploads.read(str(beside), 3) == b"345"
    assert await uploads.exists(stored)
    assert await uploads.exists(beside.as_uri())
    for uri in ("s3://b/k", str(tmp_path), f"{beside}-not", "", f"{tmp_path}/blobs/../beside\0"):
        assert not await uploads.exists(uri), uri
