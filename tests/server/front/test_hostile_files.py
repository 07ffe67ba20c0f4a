"""Files of tasks and a disk that is full: their clients are told, and nothing of ours fails."""

from __future__ import annotations

import http.client
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from flyteidl2.dataproxy import dataproxy_service_pb2 as data

from etcd_actions import ActionId, ActionsClient
from etcd_actions.blobs import Grant, UrlSigner
from tests.server.front.transferring import Door, Refused, clock, door
from tests.support import flyte
from tests.support.everyday import first_everyday

pytestmark = pytest.mark.memory(jumps=False)

__all__ = ["clock", "door"]

MIB = 1 << 20


async def link(door: Door, client: ActionsClient, path: str) -> str:
    signer = UrlSigner(client.store, client.keys, door.clock)
    grant = Grant(method="GET", path=path, expires=signer.expiry(60))
    return f"/blobs/{path}?{await signer.query(grant)}"


def directory(path: Path) -> None:
    path.mkdir()


def symlink(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def fifo(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("make", first_everyday([directory, symlink, fifo]))
@pytest.mark.parametrize("where", ["stored", "local"])
async def test_what_is_no_file_is_not_found_and_not_tried_again(
    door: Door,
    client: ActionsClient,
    tmp_path: Path,
    make: Callable[[Path], None],
    where: str,
) -> None:
    base = door.folder / "runs" if where == "stored" else tmp_path / "elsewhere"
    base.mkdir()
    path = base / "inputs.pb"
    make(path)
    key = "stored/runs/inputs.pb" if where == "stored" else f"local/{path}"
    assert (await door.http("GET", await link(door, client, key))).status == 404
    action = flyte.task(ActionId("p", "d", "r1", "a0"))
    action.input_uri = str(path)
    await client.enqueue(action)
    with pytest.raises(Refused, match="regular file") as caught:
        await door.call(
            "GetActionData",
            data.GetActionDataRequest(action_id=action.action_id),
            data.GetActionDataResponse,
        )
    assert caught.value.code == "failed_precondition"
    assert not client.containment.failures


async def test_a_file_that_is_cut_while_it_is_sent_cuts_its_answer(
    door: Door, client: ActionsClient, tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    path.touch()
    os.truncate(path, 32 * MIB)
    url = await link(door, client, f"local/{path}")

    def download() -> None:
        connection = http.client.HTTPConnection(*door.address, timeout=30)
        try:
            connection.request("GET", url)
            response = connection.getresponse()
            assert response.status == 200
            response.read(10)
            os.truncate(path, MIB)
            with pytest.raises(http.client.IncompleteRead):
                response.read()
        finally:
            connection.close()

    await trio.to_thread.run_sync(download)
    assert not client.containment.failures
    assert (await door.http("GET", url)).status == 200


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with hardly any room; root alone can make one."""
    folder = tmp_path / "blobs"
    folder.mkdir(exist_ok=True)
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)],
        check=False,
        capture_output=True,
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


async def test_a_full_disk_is_said_to_be_that(full: Path, door: Door) -> None:
    large = os.urandom(3 * MIB)
    location = await door.location(large)
    answer = await door.http("PUT", location.signed_url, large)
    assert answer.status == 507, answer
    assert b"No space left" in answer.body
    request = data.UploadInputsRequest()
    request.project_id.name, request.project_id.domain = "p", "d"
    request.inputs.literals.add(name="x").value.scalar.primitive.string_value = "x" * 3 * MIB
    with pytest.raises(Refused, match="No space left") as caught:
        await door.call("UploadInputs", request, data.UploadInputsResponse)
    assert caught.value.code == "unavailable"
    # What was refused takes no room, and a small file has some.
    assert door.stored() == []
    location = await door.location(b"small")
    assert (await door.http("PUT", location.signed_url, b"small")).status == 200
