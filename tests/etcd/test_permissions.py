"""What a role must be granted, what is missing named, and the role of the document."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

import pytest
import trio
import trio.testing
from flyteidl2.common.phase_pb2 import ActionPhase
from flyteidl2.workflow import run_service_pb2 as pb

from etcd_actions.errors import (
    PermissionDenied,
)
from etcd_actions.etcd import TransportName, User, rpc
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Get,
    KeyRange,
    Put,
    Txn,
    WatchCreate,
)
from etcd_actions.etcd.permissions import needed_for
from etcd_actions.etcd.reasons import error_kind
from etcd_actions.model import DEFAULT_KEY_PREFIX, Keyspace
from etcd_actions.testing.etcd_process import etcdctl_for, packaged_binary, sound_binary_on_path
from tests.cli.command import ROOT as ROOT_DIRECTORY
from tests.cli.command import finish, running
from tests.etcd.users import PATIENCE, SECRETS, connected
from tests.server.front.run_calls import RunsAsker, create, run_id
from tests.support.cluster import ROOT, WORKER, EtcdCluster
from tests.support.etcd_users import Kind
from tests.support.everyday import first_everyday
from tests.support.load import make_run
from tests.support.recording import until_stored
from tests.support.scene import all_marked
from tests.support.table import table
from tests.support.waiting import eventually_holds


@pytest.fixture(params=first_everyday(["grpc", "gateway"]))
def transport(request: pytest.FixtureRequest) -> TransportName:
    return cast(TransportName, request.param)


LEASED = Put(b"/p/a", b"", 7)
UNTOUCHED = Compare(b"/p/a", CompareTarget.MOD_REVISION, CompareResult.EQUAL, 1)


@table(
    ("method", "request_", "words"),
    [
        (rpc.RANGE, rpc.RangeRequest(KeyRange.of_key(b"/p/a")), "read on the key /p/a"),
        (
            rpc.RANGE,
            rpc.RangeRequest(KeyRange.of_prefix(b"/p/")),
            "read on all keys that begin with /p/",
        ),
        (
            rpc.RANGE,
            rpc.RangeRequest(KeyRange(b"/p/", b"/p/m")),
            "read on the keys from /p/ up to /p/m",
        ),
        (rpc.RANGE, rpc.RangeRequest(KeyRange(b"a", b"\0")), "read on all keys from a on"),
        (rpc.RANGE, rpc.RangeRequest(KeyRange.of_key(b"\0\xff")), r"read on the key \x00\\xff"),
        (rpc.PUT, Put(b"/p/a", b""), "write on the key /p/a"),
        (rpc.PUT, LEASED, "write on the key /p/a; and write on every key of its lease"),
        (
            rpc.DELETE,
            Delete(KeyRange.of_prefix(b"/p/")),
            "write on all keys that begin with /p/",
        ),
        (
            rpc.TXN,
            Txn([UNTOUCHED], [LEASED], [Get(KeyRange.of_key(b"/p/a"))]),
            "read and write on the key /p/a; and write on every key of its lease",
        ),
        (
            rpc.TXN,
            Txn([UNTOUCHED._replace(range_end=b"/p/c")], [Txn([], [Put(b"/q", b"")])]),
            "read on the keys from /p/a up to /p/c; write on the key /q",
        ),
        (
            rpc.TXN,
            Txn([], [Put(b"/p/%d" % n, b"") for n in range(5)]),
            "write on the key /p/0; write on the key /p/1; write on the key /p/2; and on 2 more",
        ),
        (rpc.LEASE_REVOKE, 7, "write on every key of the lease"),
        (rpc.ALARMS, None, "the role root"),
    ],
)
def test_what_a_request_needs(
    method: rpc.Rpc[object, object], request_: object, words: str
) -> None:
    """In words, each key once."""
    assert needed_for(method, request_) == words


DOCUMENT = ROOT_DIRECTORY / "docs" / "least-privilege.md"
PREFIX = DEFAULT_KEY_PREFIX.decode()
Grant: TypeAlias = tuple[Kind, KeyRange]
HISTORY = ROOT_DIRECTORY / "tests" / "data" / "taskaction_history.jsonl"


@pytest.fixture(params=["path", pytest.param("packaged", marks=pytest.mark.slow)])
def documented(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[EtcdCluster]:
    """Each etcd at hand, after the commands of the document."""
    binary = packaged_binary() if request.param == "packaged" else sound_binary_on_path()
    if binary is None:
        pytest.skip(f"there is no etcd: {request.param}")
    cluster = EtcdCluster(tmp_path / "etcd", binary=binary)
    try:
        cluster.start()
        (tmp_path / "root.password").write_text(f"{ROOT.password}\n")
        (tmp_path / "worker.password").write_text(f"{WORKER.password}\n")
        blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
        for block in blocks[:2]:
            subprocess.run(
                ["bash", "-e", "-c", block],
                check=True,
                capture_output=True,
                cwd=tmp_path,
                env={
                    "PATH": f"{etcdctl_for(binary.path).parent}:{os.environ['PATH']}",
                    "ETCDCTL_API": "3",
                    "ETCDCTL_ENDPOINTS": cluster.endpoints[0],
                },
            )
        cluster.root = ROOT
        yield cluster
    finally:
        cluster.stop()


def as_worker(cluster: EtcdCluster, transport: TransportName) -> dict[str, Any]:
    """The variables of the command."""
    return {
        "ETCDCTL_ENDPOINTS": cluster.endpoints[0],
        "ETCDCTL_USER": WORKER.name,
        "ETCDCTL_PASSWORD": str(WORKER.password),
        "ETCD_ACTIONS_TRANSPORT": transport,
    }


@pytest.mark.slow
async def test_the_role_of_the_document_is_enough(
    documented: EtcdCluster, transport: TransportName, tmp_path: Path
) -> None:
    """Everything runs with it: the history is written, watched, marked and shown."""
    env = as_worker(documented, transport)
    lines = HISTORY.read_text().splitlines(keepends=True)
    unmarked = [line for line in lines if _MARK not in base64.b64decode(_value(line))]
    history = tmp_path / "history.jsonl"
    history.write_text("".join(unmarked))
    with (
        running(tmp_path, "run", **env) as run,
        running(tmp_path, "watch", **env) as watch,
    ):
        await run.logged("synced")
        await watch.row("SYNCED")
        replayed = await trio.to_thread.run_sync(partial(finish, "replay", history, **env))
        assert (replayed.code, replayed.err) == (0, "")

        keys = KeyRange.of_prefix(DEFAULT_KEY_PREFIX)
        async with connected(documented, "grpc", user=ROOT) as direct:
            with trio.fail_after(PATIENCE):
                await until_stored(direct, keys, all_marked)
        for process in (run, watch):
            process.signal(signal.SIGTERM)
            assert await process.wait() == 0
        assert not run.logs("handler_failed")
        assert not run.logs("watch_lost")
    listed = await trio.to_thread.run_sync(partial(finish, "list", **env))
    assert (listed.code, listed.err) == (0, "")
    assert len(listed.out.splitlines()) == 10
    assert sum(json.loads(line)["recorded"] for line in listed.out.splitlines()) == 9


@pytest.mark.slow
async def test_the_role_of_the_document_is_enough_for_the_front_door(
    documented: EtcdCluster, tmp_path: Path
) -> None:
    """A run is created, shown and aborted; a process that comes later collects it."""
    env = as_worker(documented, "grpc")
    options = ("--blob-dir", tmp_path / "blobs", "--executor", "none")
    with running(tmp_path, "run", *options, **env) as run:
        address = (await run.logged("serving"))["listen"]
        asker = RunsAsker(SimpleNamespace(address=address))  # type: ignore[arg-type]
        await asker("CreateRun", create("r1"))
        await asker("AbortRun", pb.AbortRunRequest(run_id=run_id("r1")))

        async def recorded() -> bool:
            found = await asker("GetRunDetails", pb.GetRunDetailsRequest(run_id=run_id("r1")))
            listed = await trio.to_thread.run_sync(partial(finish, "list", **env))
            # Collected is only what is marked, and the next sweep is a minute away.
            marked = [json.loads(line)["recorded"] for line in listed.out.splitlines()]
            ended = found.details.action.status.phase == ActionPhase.ACTION_PHASE_ABORTED
            return bool(ended and marked == [True])

        await eventually_holds(recorded)
        run.signal(signal.SIGTERM)
        assert await run.wait() == 0
        for event in ("handler_failed", "unit_failed", "watch_lost"):
            assert not run.logs(event)
    with running(tmp_path, "run", *options, "--retain-runs", "1ms", **env) as later:
        collected = await later.logged("runs_collected")
        assert (collected["records"], collected["objects"], collected["histories"]) == (1, 1, 1)
        later.signal(signal.SIGTERM)
        assert await later.wait() == 0
        assert not later.logs("runs_not_collected")
    keys = Keyspace(DEFAULT_KEY_PREFIX)
    async with connected(documented, "grpc", user=ROOT) as direct:
        for prefix in (keys.prefix, keys.runs, keys.run_tasks, keys.histories):
            assert (await direct.range(KeyRange.of_prefix(prefix))).kvs == []


@pytest.mark.parametrize(
    ("grant", "command", "missing"),
    first_everyday(
        [
            pytest.param(None, ["run"], f"read on all keys that begin with {PREFIX}", id="run"),
            pytest.param(
                ("readwrite", KeyRange.of_prefix(DEFAULT_KEY_PREFIX)),
                ["run"],
                f"read on the key /etcd-actions{PREFIX}position/",
                id="run-own-keys",
            ),
            pytest.param(None, ["watch"], f"read on all keys that begin with {PREFIX}", id="watch"),
            pytest.param(None, ["replay", HISTORY], f"read on the key {PREFIX}", id="replay"),
            pytest.param(
                ("write", KeyRange.of_prefix(DEFAULT_KEY_PREFIX)),
                ["run"],
                f"read on all keys that begin with {PREFIX}",
                id="run-no-read",
            ),
            pytest.param(
                ("readwrite", KeyRange(DEFAULT_KEY_PREFIX, DEFAULT_KEY_PREFIX + b"flyte/rk")),
                ["list"],
                f"read on all keys that begin with {PREFIX}",
                id="list-half",
            ),
            pytest.param(
                ("read", KeyRange.of_prefix(DEFAULT_KEY_PREFIX)),
                ["replay", HISTORY],
                f"read and write on the key {PREFIX}flyte/",
                id="replay-no-write",
            ),
            pytest.param(
                ("readwrite", KeyRange.of_prefix(f"{PREFIX.rstrip('/')}-other/".encode())),
                ["watch", "--namespace", "flyte"],
                f"read on all keys that begin with {PREFIX}flyte/",
                id="watch-namespace",
            ),
        ]
    ),
)
async def test_what_is_missing_is_named(
    users_etcd: EtcdCluster,
    grant: Grant | None,
    command: list[str],
    missing: str,
) -> None:
    """The command ends with 4, and says which permission and what to do."""
    with limited(users_etcd, "grpc", *([grant] if grant else [])) as env:
        done = await trio.to_thread.run_sync(partial(finish, *command, **env))
    assert done.code == 4, done.err
    complaint = done.err.splitlines()[-1]
    assert f"permission denied: user 'limited' needs {missing}" in complaint
    assert "grant the etcd user" in complaint
    assert not [secret for secret in SECRETS if secret in done.err + done.out]


@pytest.mark.slow
async def test_marks_without_write_are_tried_until_it_is_granted(
    users_etcd: EtcdCluster, transport: TransportName, tmp_path: Path, prefix: bytes
) -> None:
    """It says which key it may not write; then the mark is made."""
    (action,) = make_run(prefix, "rw1", 1)
    with (
        limited(
            users_etcd,
            transport,
            ("read", KeyRange.of_prefix(prefix)),
            ("readwrite", KeyRange.of_prefix(Keyspace(prefix).own)),
        ) as env,
        trio.fail_after(PATIENCE),
    ):
        async with connected(users_etcd, "grpc", user=ROOT) as direct:
            await direct.put(action.key, action.ended)
            common = ("--prefix", prefix.decode())
            with running(tmp_path, "run", *common, **env) as run:
                failed = await run.logged("handler_failed")
                assert (
                    f"user 'limited' needs read and write on the key {action.key.decode()}"
                    in failed["error"]
                )
                users_etcd.users.grant("limited", "readwrite", KeyRange.of_prefix(prefix))
                await until_stored(direct, KeyRange.of_prefix(prefix), all_marked)
                run.signal(signal.SIGTERM)
                assert await run.wait() == 0


async def test_a_watch_of_more_than_is_allowed(
    users_etcd: EtcdCluster, transport: TransportName, prefix: bytes
) -> None:
    """A stream that is refused says which keys it was refused for."""
    user = User(name="limited", password=SECRETS[3])
    keys = KeyRange.of_prefix(prefix)
    with (
        limited(users_etcd, transport, ("read", KeyRange(prefix, prefix + b"m"))),
        trio.fail_after(PATIENCE),
    ):
        async with connected(users_etcd, transport, user=user) as etcd:
            half = KeyRange(prefix, prefix + b"m")
            await etcd.range(half)
            said = ""
            async with etcd.watch() as stream:
                stream.create(WatchCreate(1, half, 1))
                stream.create(WatchCreate(2, KeyRange(half.end, keys.end), 1))
                while not said:
                    try:
                        said = next(
                            (
                                each.cancel_reason
                                for each in await stream.receive()
                                if each.canceled
                            ),
                            "",
                        )
                    except PermissionDenied as error:
                        said = str(error)
    assert error_kind(said) is PermissionDenied
    assert "user 'limited' needs read on " in said
    assert prefix.decode() in said


@contextmanager
def limited(
    cluster: EtcdCluster, transport: TransportName, *grants: Grant
) -> Iterator[dict[str, Any]]:
    """A user with these permissions; gives the variables of the command."""
    user = User(name="limited", password=SECRETS[3])
    with ExitStack() as stack:
        cluster.users.add_role("limited")
        stack.callback(cluster.users.delete_role, "limited")
        for kind, keys in grants:
            cluster.users.grant("limited", kind, keys)
        cluster.add_user(user, "limited")
        stack.callback(cluster.users.delete, user)
        yield as_worker(cluster, transport) | {
            "ETCDCTL_USER": user.name,
            "ETCDCTL_PASSWORD": str(user.password),
        }


def _value(line: str) -> str:
    return str(json.loads(line).get("value") or "")


_MARK = b'"flyte.org/terminal-status-recorded":"true"'
