"""The service, etcd and uploads are killed in the middle of what the SDK's entry points do."""

from __future__ import annotations

import hashlib
import http.client
import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import IO, Final, TypeVar
from urllib.parse import urlsplit

import pytest
import trio
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl2.dataproxy import dataproxy_service_pb2 as data_pb
from flyteidl2.task import task_service_pb2 as task_pb
from flyteidl2.task.task_definition_pb2 import TaskIdentifier
from flyteidl2.workflow import run_service_pb2 as pb
from google.protobuf.message import Message

from etcd_actions import ActionId, open_etcd
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.registry.task_record import TaskId, task_key
from tests.cli.command import ROOT, Running, running, until
from tests.sdk.conftest import sdk_python
from tests.sdk.service import Site, free_port, kill
from tests.server.front.run_calls import action_id, create, task_spec
from tests.server.front.transferring import SERVICE, Refused
from tests.support import oracle
from tests.support.crashing_front import ADDRESS, CREATION, DEPLOYMENT
from tests.support.etcd_server import EtcdServer
from tests.support.flyte_services import RUNS, TASKS

pytestmark = pytest.mark.faults

__all__ = ["sdk_python"]

M = TypeVar("M", bound=Message)

PROGRAM = Path(__file__).parents[1] / "sdk" / "front_programs" / "waiting.py"
_TRANSIENT: Final = ("unavailable", "deadline_exceeded")
ROOT_OF_R1 = ActionId("p", "d", "r1", "a0")


class Lost(Exception):
    """The answer did not come: its server is gone."""


def ask(address: str, method: str, request: Message, reply: type[M]) -> M:
    """One call by Connect."""
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"content-type": "application/proto"}
    try:
        connection.request("POST", f"/{method}", request.SerializeToString(), headers)
        response = connection.getresponse()
        data = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise Lost from error
    finally:
        connection.close()
    if response.status != 200:
        told = json.loads(data)
        raise Refused(told["code"], told.get("message", ""))
    return reply.FromString(data)


class Process:
    """A front door that dies at a point, or never."""

    def __init__(self, process: subprocess.Popen[str], address: str) -> None:
        self._process = process
        self._address = address

    async def ask(self, method: str, request: Message, reply: type[M]) -> M:
        return await trio.to_thread.run_sync(ask, self._address, method, request, reply)

    async def ended(self) -> int:
        return await trio.to_thread.run_sync(self._process.wait, 30)


@asynccontextmanager
async def front(
    server: EtcdServer, prefix: bytes, folder: Path, when: str
) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "tests.support.crashing_front"]
    process = subprocess.Popen(
        [*command, server.endpoint, prefix.decode(), str(folder), when],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield Process(process, await trio.to_thread.run_sync(_address, process.stdout))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _address(out: IO[str]) -> str:
    for line in out:
        if line.startswith(f"{ADDRESS} "):
            return line.split()[1]
    raise AssertionError("it did not come to serve")


def with_inputs() -> pb.CreateRunRequest:
    """A run whose inputs come with the request, so that they are kept first."""
    request = create("r1")
    number = Literal(scalar=Scalar(primitive=Primitive(integer=7)))
    request.inputs.literals.add(name="number", value=number)
    return request


async def created(etcd: Etcd, keys: Keyspace, root: ActionId = ROOT_OF_R1) -> dict[bytes, int]:
    """What is there of a run, each with the revision of its creation."""
    wanted = (keys.task_action(root), keys.run_record(root), keys.run_task(root))
    found = [(await etcd.range(KeyRange.of_key(key))).kvs for key in wanted]
    return {kv.key: kv.create_revision for kvs in found for kv in kvs}


@pytest.mark.parametrize("when", CREATION)
async def test_a_run_is_created_once(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path, when: str
) -> None:
    """Killed anywhere: all of the run is there, or nothing; the same request again makes one."""
    keys, request, folder = Keyspace(prefix), with_inputs(), tmp_path / "blobs"
    with trio.fail_after(90):
        async with front(shared_etcd, prefix, folder, when) as process:
            with pytest.raises(Lost):
                await process.ask(f"{RUNS}/CreateRun", request, pb.CreateRunResponse)
            assert await process.ended() == -signal.SIGKILL
        before = await created(etcd, keys)
        assert len(before) == (3 if when == "after the run" else 0)
        async with front(shared_etcd, prefix, folder, "never") as process:
            for _ in range(2):
                await process.ask(f"{RUNS}/CreateRun", request, pb.CreateRunResponse)
            asked = data_pb.GetActionDataRequest(action_id=action_id("r1"))
            data = await process.ask(
                f"{SERVICE}/GetActionData", asked, data_pb.GetActionDataResponse
            )
    assert data.inputs == request.inputs
    after = await created(etcd, keys)
    assert len(after) == 3
    assert len(set(after.values())) == 1
    assert before in ({}, after)
    history = await oracle.read_history(etcd, KeyRange.of_prefix(prefix))
    assert len({entry.key for entry in history}) == 1
    inputs = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(inputs) == 1


@pytest.mark.parametrize("when", DEPLOYMENT)
async def test_a_task_is_deployed_once(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path, when: str
) -> None:
    """Killed before or after the write: the version is there, or not; the same again is skipped."""
    task = TaskIdentifier(org="o", project="p", domain="d", name="envs.greet", version="v1")
    request = task_pb.DeployTaskRequest(task_id=task, spec=task_spec())
    key = task_key(Keyspace(prefix).tasks, TaskId("p", "d", "envs.greet", "v1"))
    with trio.fail_after(90):
        async with front(shared_etcd, prefix, tmp_path, when) as process:
            with pytest.raises(Lost):
                await process.ask(f"{TASKS}/DeployTask", request, task_pb.DeployTaskResponse)
            assert await process.ended() == -signal.SIGKILL
        before = (await etcd.range(KeyRange.of_key(key))).kvs
        assert len(before) == (when == "after the task")
        async with front(shared_etcd, prefix, tmp_path, "never") as process:
            if not before:
                await process.ask(f"{TASKS}/DeployTask", request, task_pb.DeployTaskResponse)
            with pytest.raises(Refused) as caught:
                await process.ask(f"{TASKS}/DeployTask", request, task_pb.DeployTaskResponse)
            assert caught.value.code == "already_exists"
            asked = task_pb.GetTaskDetailsRequest(task_id=task)
            found = await process.ask(
                f"{TASKS}/GetTaskDetails", asked, task_pb.GetTaskDetailsResponse
            )
    assert found.details.spec == request.spec
    (after,) = (await etcd.range(KeyRange.of_key(key))).kvs
    assert after.version == 1


def service(
    directory: Path, server: EtcdServer, prefix: bytes, *flags: str
) -> AbstractContextManager[Running]:
    """The real service, without an executor."""
    where = ("--endpoints", server.endpoint, "--prefix", prefix.decode())
    return running(directory, "run", *where, "--blob-dir", directory / "blobs", *flags)


async def address_of(service: Running) -> str:
    return str((await service.logged("serving"))["listen"])


def half(address: str, target: str, body: bytes) -> socket.socket:
    """Send the first half of an upload, and keep the connection."""
    host, _, port = address.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout=30)
    head = f"PUT {target} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {len(body)}\r\n\r\n"
    sock.sendall(head.encode() + body[: len(body) // 2])
    return sock


def put(address: str, target: str, body: bytes | None) -> tuple[int, bytes]:
    """Put a body, or, without one, get what is there."""
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET" if body is None else "PUT", target, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


async def test_half_an_upload_is_never_a_bundle(
    killable_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """The service and etcd are killed while a body arrives: nothing has its name; again works."""
    body = bytes(range(256)) * 20_000
    blobs = tmp_path / "blobs"
    request = data_pb.CreateUploadLocationRequest(
        project="p", domain="d", filename="code.tar.gz", content_md5=hashlib.md5(body).digest()
    )

    def named() -> list[Path]:
        files = [path for path in blobs.rglob("*") if path.is_file()]
        return [path for path in files if ".partial" not in path.parts]

    def arrived() -> bool:
        return any(path.stat().st_size for path in (blobs / ".partial").iterdir())

    with trio.fail_after(120):
        with service(tmp_path, killable_etcd, prefix) as first:
            address = await address_of(first)
            location = await trio.to_thread.run_sync(
                ask,
                address,
                f"{SERVICE}/CreateUploadLocation",
                request,
                data_pb.CreateUploadLocationResponse,
            )
            split = urlsplit(location.signed_url)
            target = f"{split.path}?{split.query}"
            with half(address, target, body):
                await until(arrived)
                kill(first)
        killable_etcd.kill()
        await trio.to_thread.run_sync(killable_etcd.start)
        assert named() == []
        with service(tmp_path, killable_etcd, prefix) as second:
            address = await address_of(second)
            # The URL is still good: what it is signed with is in etcd.
            status, answer = await trio.to_thread.run_sync(put, address, target, body)
            assert status == 200, answer
    (bundle,) = named()
    assert str(bundle) == location.native_url
    assert bundle.read_bytes() == body


async def test_etcd_is_killed_while_runs_are_created(
    killable_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """Clients send the same request until it is answered: each run is there once, and whole."""
    names = [f"r{number}" for number in range(1, 41)]
    failures: list[Refused] = []
    answered: list[str] = []

    async def create_one(address: str, name: str) -> None:
        method, request = f"{RUNS}/CreateRun", create(name)
        while True:
            try:
                await trio.to_thread.run_sync(
                    ask, address, method, request, pb.CreateRunResponse, limiter=threads
                )
            except Refused as refused:
                if refused.code not in _TRANSIENT:
                    raise
                failures.append(refused)
                await trio.sleep(0.05)  # The pace of a client that tries again.
            else:
                answered.append(name)
                return

    threads = trio.CapacityLimiter(len(names))
    flags = ("--command-timeout", "500ms")
    with trio.fail_after(120), service(tmp_path, killable_etcd, prefix, *flags) as running_service:
        address = await address_of(running_service)
        async with trio.open_nursery() as nursery:
            for name in names[:20]:
                nursery.start_soon(create_one, address, name)
            await until(lambda: answered)
            killable_etcd.kill()
            for name in names[20:]:
                nursery.start_soon(create_one, address, name)
            await until(lambda: failures)
            await trio.to_thread.run_sync(killable_etcd.start)
        async with open_etcd(killable_etcd.endpoint) as etcd:
            for name in names:
                there = await created(etcd, Keyspace(prefix), ActionId("p", "d", name, "a0"))
                assert len(there) == 3, name
                assert len(set(there.values())) == 1, name


def client(python: Path, directory: Path, port: int) -> subprocess.Popen[str]:
    """The SDK's own `run.wait()`, as a person has it."""
    return subprocess.Popen(
        [python, PROGRAM, f"http://127.0.0.1:{port}", "p", directory],
        env={"PATH": f"{python.parent}:/usr/bin:/bin", "HOME": str(directory), "LANG": "C.UTF-8"},
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture
def site(killable_etcd: EtcdServer, tmp_path: Path, sdk_python: Path) -> Iterator[Site]:
    site = Site(tmp_path, killable_etcd.endpoint, b"/waiting/", sdk_python)
    yield site
    site.end_all()


async def test_who_waits_for_a_run_gets_its_result(
    killable_etcd: EtcdServer, site: Site, sdk_python: Path, tmp_path: Path
) -> None:
    """The service is killed and comes back, then etcd, while the SDK waits: it goes on."""
    port, flags = free_port(), ("--blob-dir", str(tmp_path / "blobs"))
    with ExitStack() as stack, trio.fail_after(150):
        first = stack.enter_context(site.service(port, *flags))
        await first.logged("serving")
        waiting = client(sdk_python, tmp_path, port)
        stack.callback(waiting.wait)
        stack.callback(waiting.kill)
        await until(lambda: (tmp_path / "holds").exists() or waiting.poll() is not None)
        assert waiting.poll() is None, waiting.communicate()[0]
        kill(first)
        second = stack.enter_context(site.service(port, *flags))
        await second.logged("serving")
        killable_etcd.kill()
        await trio.to_thread.run_sync(killable_etcd.start)
        assert waiting.poll() is None, waiting.communicate()[0]
        (tmp_path / "go").touch()
        out, _ = await trio.to_thread.run_sync(waiting.communicate)
    assert waiting.returncode == 0, f"{out}\n{second.err[-4000:]}"
    assert out.splitlines()[-1] == '{"outputs": ["held and done"], "phase": "succeeded"}', out
