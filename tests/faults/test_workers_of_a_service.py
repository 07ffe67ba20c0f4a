"""Workers that have a token of the service, and neither the address nor a user of etcd."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import psutil
import pytest
import trio

from etcd_actions import ActionsClient, Phase, open_actions_client
from etcd_actions.etcd import User, open_etcd
from etcd_actions.etcd.api import KeyRange
from etcd_actions.executor.lost_attempts import WORKER_LOST
from etcd_actions.model import Keyspace
from etcd_actions.model.earlier_attempts import earlier_attempts
from etcd_actions.testing.etcd_server import OwnEtcd, lasting_port
from tests.cli.command import Running, finish, running
from tests.executor.tasks import ROOT, until
from tests.faults.test_workers import AFTER, Site, site
from tests.sdk.service import kill
from tests.support.waiting import eventually, eventually_holds

pytestmark = pytest.mark.faults

__all__ = ["site"]

PASSWORD = "of-root"


@pytest.fixture
def closed_etcd(own_etcd: OwnEtcd) -> OwnEtcd:
    """An etcd that answers only a user with a password."""
    own_etcd.etcdctl("user", "add", f"root:{PASSWORD}")
    own_etcd.etcdctl("user", "grant-role", "root", "root")
    own_etcd.etcdctl("auth", "enable")
    return own_etcd


@pytest.fixture
async def client(closed_etcd: OwnEtcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    user = User(name="root", password=PASSWORD)
    async with (
        open_etcd(closed_etcd.endpoint, user=user) as etcd,
        open_actions_client(etcd, prefix=prefix) as client,
    ):
        await client.start_watching()
        yield client


class Served:
    """A service of a test, and what its workers need."""

    def __init__(self, site: Site, etcd: OwnEtcd) -> None:
        self.address = f"127.0.0.1:{lasting_port()}"
        self._site = site
        self._etcd = etcd
        self._tokens = site.directory / "tokens"
        self._tokens.write_text("client-token name=alice\nworker-token name=w role=worker\n")
        self._shown = site.directory / "token"
        self._shown.write_text("worker-token\n")

    def start(self, name: str, *flags: str) -> AbstractContextManager[Running]:
        logs = self._site.directory / f"service-{name}"
        logs.mkdir()
        return running(
            logs,
            "run",
            *("--endpoints", self._etcd.endpoint, "--user", f"root:{PASSWORD}"),
            *("--prefix", self._site.prefix.decode(), "--listen", self.address),
            *("--token-file", self._tokens, "--blob-dir", self._site.directory / "blobs"),
            *("--log-format", "json", *(flags or ("--worker-access",))),
        )

    @property
    def where(self) -> tuple[str | Path, ...]:
        return "--service", self.address, "--service-token-file", self._shown

    def is_used_by(self, worker: Running) -> bool:
        """Whether a worker has a connection to it."""
        port = int(self.address.rpartition(":")[2])
        connections = psutil.Process(worker.pid).net_connections("tcp")
        return any(
            each.raddr and each.raddr[1] == port and each.status == psutil.CONN_ESTABLISHED
            for each in connections
        )

    def show(self, token: str) -> None:
        self._shown.write_text(token)


@pytest.fixture
def served(site: Site, closed_etcd: OwnEtcd) -> Served:
    return Served(site, closed_etcd)


async def test_a_worker_runs_tasks_over_the_service_and_its_restart(
    client: ActionsClient, site: Site, served: Served
) -> None:
    """The lease of its claims is in etcd: the attempt that runs continues."""
    go = site.directory / "go"
    with trio.fail_after(120), ExitStack() as stack:
        service = stack.enter_context(served.start("a"))
        await service.logged("serving")
        # Longer than the service is away, on a busy machine too.
        ttl = ("--executor-claim-ttl", "60")
        worker = stack.enter_context(site.worker_at("a", served.where, *ttl))
        assert (await worker.logged("started"))["service"] == served.address
        await worker.logged("working")
        await client.enqueue(site.machine.task(ROOT, f"until [ -e {go} ]; do sleep 0.05; done"))
        await until(client, ROOT, Phase.RUNNING)
        await eventually(lambda: site.starts()["a0.0"] == 1)
        kill(service)
        await (stack.enter_context(served.start("b"))).logged("serving")
        go.touch()
        action = await until(client, ROOT)
        assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 1)
        assert site.starts() == {"a0.0": 1}
        assert not worker.logs("lease_lost")
        await client.enqueue(site.machine.task(AFTER, "exit 0"))
        assert (await until(client, AFTER)).phase is Phase.SUCCEEDED


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hangs"])
async def test_a_worker_moves_to_another_service_when_its_own_is_lost(
    client: ActionsClient, site: Site, closed_etcd: OwnEtcd, how: signal.Signals
) -> None:
    """Its lease is in etcd, which both services use: the attempt that runs continues."""
    go = site.directory / "go"
    pair = [Served(site, closed_etcd), Served(site, closed_etcd)]
    where = (*pair[0].where, "--service", pair[1].address)
    with trio.fail_after(180), ExitStack() as stack:
        services = [stack.enter_context(pair[each].start(f"{each}")) for each in (0, 1)]
        for each in services:
            await each.logged("serving")
        # A renewal is due each third of it: a service that hangs is found out well before the end.
        ttl = ("--executor-claim-ttl", "30")
        worker = stack.enter_context(site.worker_at("a", where, *ttl))
        await worker.logged("working")
        await client.enqueue(site.machine.task(ROOT, f"until [ -e {go} ]; do sleep 0.05; done"))
        await until(client, ROOT, Phase.RUNNING)
        await eventually(lambda: site.starts()["a0.0"] == 1)
        (used,) = (each for each in (0, 1) if pair[each].is_used_by(worker))
        services[used].signal(how)
        await eventually(lambda: pair[1 - used].is_used_by(worker), within=60)
        go.touch()
        action = await until(client, ROOT)
        assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 1)
        await client.enqueue(site.machine.task(AFTER, "exit 0"))
        assert (await until(client, AFTER)).phase is Phase.SUCCEEDED
        assert site.starts() == {"a0.0": 1, "after.0": 1}
        for event in ("lease_lost", "claims_not_renewed_in_time"):
            assert not worker.logs(event)


async def test_a_worker_leaves_a_service_that_does_not_accept_it_any_more(
    client: ActionsClient, site: Site, closed_etcd: OwnEtcd
) -> None:
    """One without --worker-access, or with other tokens, is as good as one that is down."""
    pair = [Served(site, closed_etcd), Served(site, closed_etcd)]
    where = (*pair[0].where, "--service", pair[1].address)
    with trio.fail_after(120), ExitStack() as stack:
        services = [stack.enter_context(pair[each].start(f"{each}")) for each in (0, 1)]
        for each in services:
            await each.logged("serving")
        ttl = ("--executor-claim-ttl", "60")
        worker = stack.enter_context(site.worker_at("a", where, *ttl))
        await worker.logged("working")
        (used,) = (each for each in (0, 1) if pair[each].is_used_by(worker))
        kill(services[used])
        kill(services[1 - used])
        refusing = stack.enter_context(pair[used].start("c", "--worker-access=false"))
        await refusing.logged("serving")
        await (stack.enter_context(pair[1 - used].start("d"))).logged("serving")
        await client.enqueue(site.machine.task(AFTER, "exit 0"))
        assert (await until(client, AFTER)).phase is Phase.SUCCEEDED


async def test_a_worker_whose_service_stays_away_ends_its_attempt(
    client: ActionsClient, site: Site, served: Served
) -> None:
    with trio.fail_after(120), ExitStack() as stack:
        service = stack.enter_context(served.start("a"))
        await service.logged("serving")
        worker = stack.enter_context(site.worker_at("a", served.where))
        await worker.logged("working")
        await client.enqueue(site.machine.task(ROOT, site.beating()))
        await until(client, ROOT, Phase.RUNNING)
        await site.beats()
        kill(service)
        await worker.logged("claims_not_renewed_in_time")
        # The claim expires in etcd, without a service.
        claims = Keyspace(site.prefix).claims
        await eventually_holds(lambda: _is_free(client, claims))
        stack.enter_context(served.start("b"))
        action = await until(client, ROOT)
        assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
        assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]
        assert site.starts() == {"a0.0": 1, "a0.1": 1}
        site.check_apart()


async def _is_free(client: ActionsClient, claims: bytes) -> bool:
    return not (await client.store.read(KeyRange.of_prefix(claims)))[0]


@pytest.mark.parametrize(
    ("token", "flags", "code", "text"),
    [
        ("worker-token", ("--worker-access=false",), 4, "--worker-access"),
        ("client-token", (), 4, "add name=NAME role=worker to its line"),
        ("unknown", (), 4, "the token is not accepted: the token in"),
    ],
)
async def test_a_worker_without_the_right_ends_with_the_remedy(
    site: Site, served: Served, token: str, flags: tuple[str, ...], code: int, text: str
) -> None:
    served.show(token)
    with trio.fail_after(60), served.start("a", *flags) as service:
        await service.logged("serving")
        with site.worker_at("a", served.where) as worker:
            assert await worker.wait() == code
            assert text in worker.err


def test_settings_of_etcd_next_to_the_service_are_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("t\n")
    where = ("--service", "127.0.0.1:1", "--executor-state-dir", tmp_path / "state")
    done = finish("worker", *where)
    assert "--service needs --service-token-file" in done.err
    done = finish("worker", *where, "--service-token-file", token, "--endpoints", "127.0.0.1:2")
    assert "--service is used in place of etcd, but --endpoints is for etcd" in done.err
    done = finish("worker", *where, "--service-token-file", token, "--executor-claim-ttl", "3601")
    assert "--executor-claim-ttl 3601: with --service claims live for 3600 seconds" in done.err
    mixed = ("--service", "127.0.0.1:1,https://127.0.0.1:2", "--service-token-file", token)
    assert "only some addresses have https://" in finish("worker", *mixed).err
    done = finish("worker", *where, "--service-token-file", tmp_path / "none")
    assert "--service-token-file: " in done.err
    assert done.code == 2


def test_access_of_workers_needs_tokens_and_grpc(tmp_path: Path) -> None:
    flags = ("--worker-access", "--endpoints", "127.0.0.1:2")
    assert "--worker-access needs --token-file" in finish("run", *flags).err
    tokens = tmp_path / "tokens"
    tokens.write_text("t name=w role=worker\n")
    done = finish("run", *flags, "--token-file", tokens, "--transport", "gateway")
    assert "--worker-access needs --transport grpc" in done.err
    for line in ("t role=worker", "t name=w role=worker projects=a", "t name=w role=other"):
        tokens.write_text(f"{line}\n")
        done = finish("run", *flags, "--token-file", tokens)
        assert "line 1: role=" in done.err
        assert done.code == 2
