"""Workers as processes, which have nothing in common but etcd and the files of runs."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path

import psutil
import pytest
import trio

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client, open_etcd
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor.lost_attempts import WORKER_LOST, WORKER_STOPPED
from etcd_actions.model.earlier_attempts import earlier_attempts
from etcd_actions.testing import EtcdServer
from tests.cli.command import Running, running
from tests.executor.tasks import ROOT, Machine, until
from tests.sdk.service import kill
from tests.support.cluster import EtcdCluster
from tests.support.namespaces import Namespace, Network, open_network, why_not
from tests.support.proxy import open_proxy
from tests.support.waiting import eventually

pytestmark = pytest.mark.faults

TTL = 5
AFTER = ActionId("p", "d", "r2", "after", "o")


class Site:
    """Where the workers of a test are."""

    def __init__(self, directory: Path, prefix: bytes) -> None:
        self.directory = directory
        self.prefix = prefix
        self.machine = Machine(directory)
        self.within: dict[str, Namespace] = {}

    def worker(self, name: str, endpoint: str, *flags: str) -> AbstractContextManager[Running]:
        """A worker with its own state directory, in its namespace, for as long as the context."""
        return self.worker_at(name, ("--endpoints", endpoint), *flags)

    def worker_at(
        self, name: str, where: tuple[str | Path, ...], *flags: str
    ) -> AbstractContextManager[Running]:
        """The same, with the flags that name etcd, or a service."""
        logs = self.directory / f"logs-{name}"
        logs.mkdir(exist_ok=True)
        machine = self.within.get(name)
        return running(
            logs,
            "worker",
            *where,
            "--prefix",
            self.prefix.decode(),
            "--executor-state-dir",
            self.directory / "state" / name,
            "--executor-claim-ttl",
            str(TTL),
            "--executor-fork-server=false",
            "--log-format",
            "json",
            "--blob-dir",
            self.directory / "blobs",
            *flags,
            within=() if machine is None else machine.command(),
        )

    def starts(self) -> Counter[str]:
        """How often each attempt was started, as ``<action>.<attempt>``."""
        names = [path.name.rpartition(".")[0] for path in self.machine.runs.iterdir()]
        return Counter(names)

    def beating(self) -> str:
        """A script whose first attempt notes the time again and again, and the second its start."""
        return f"""
        if [ "$FLYTE_ATTEMPT_NUMBER" != 0 ]; then date +%s.%N >{self.directory}/second; exit 0; fi
        while true; do date +%s.%N >{self.directory}/.beat
        mv {self.directory}/.beat {self.directory}/beat; sleep 0.05; done
        """

    async def beats(self) -> None:
        """Return once the first attempt runs."""
        await eventually((self.directory / "beat").exists)

    def check_apart(self) -> None:
        """The first attempt had ended when the second one began; the clock is one machine's."""
        started = float((self.directory / "second").read_text())
        assert float((self.directory / "beat").read_text()) < started

    def end_all(self) -> None:
        """End the tasks that a killed worker left."""
        for process in psutil.process_iter():
            try:
                if str(self.directory) in (process.environ().get("RUNS") or ""):
                    process.kill()
            except psutil.Error:
                continue


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def site(tmp_path: Path, prefix: bytes) -> Iterator[Site]:
    site = Site(tmp_path, prefix)
    (tmp_path / "state").mkdir()
    yield site
    site.end_all()


async def beating_worker(
    stack: ExitStack, client: ActionsClient, site: Site, endpoint: str, elsewhere: str
) -> Running:
    """A worker whose attempt beats, while another one waits at the endpoint ``elsewhere``."""
    first = stack.enter_context(site.worker("a", endpoint))
    await first.logged("working")
    await client.enqueue(site.machine.task(ROOT, site.beating()))
    await until(client, ROOT, Phase.RUNNING)
    await site.beats()
    second = stack.enter_context(site.worker("b", elsewhere))
    await second.logged("working")
    return first


async def test_sixty_actions_on_three_workers(
    client: ActionsClient, site: Site, shared_etcd: EtcdServer
) -> None:
    ids = [ActionId("p", "d", f"r{number}", f"a{number}", "o") for number in range(60)]
    with trio.fail_after(120), ExitStack() as stack:
        workers = [stack.enter_context(site.worker(name, shared_etcd.endpoint)) for name in "abc"]
        for worker in workers:
            await worker.logged("working")
        for each in ids:
            await client.enqueue(site.machine.task(each, "sleep 0.2"))
        for each in ids:
            assert (await until(client, each)).phase is Phase.SUCCEEDED
        assert set(site.starts().values()) == {1}
        assert len(site.starts()) == 60
        for worker in workers:
            assert len(worker.logs("attempt_followed")) >= 5
            assert '"level": "error"' not in worker.err
            worker.signal(signal.SIGTERM)
        assert [await worker.wait() for worker in workers] == [0, 0, 0]


async def test_a_killed_workers_attempt_ends_and_the_next_one_starts_elsewhere(
    client: ActionsClient, site: Site, shared_etcd: EtcdServer
) -> None:
    """Its supervisor lives on: the guard ends the attempt."""
    with trio.fail_after(90), ExitStack() as stack:
        first = await beating_worker(
            stack, client, site, shared_etcd.endpoint, shared_etcd.endpoint
        )
        kill(first)
        action = await until(client, ROOT)
        assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
        assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]
        assert site.starts() == {"a0.0": 1, "a0.1": 1}
        site.check_apart()


async def test_a_stopped_workers_attempt_ends_before_the_next_one_starts(
    client: ActionsClient, site: Site, shared_etcd: EtcdServer
) -> None:
    """SIGSTOP beyond the lease; when the worker continues it reports nothing."""
    with trio.fail_after(90), ExitStack() as stack:
        first = await beating_worker(
            stack, client, site, shared_etcd.endpoint, shared_etcd.endpoint
        )
        first.signal(signal.SIGSTOP)
        action = await until(client, ROOT)
        assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
        site.check_apart()
        first.signal(signal.SIGCONT)
        await first.logged("lease_lost")
        # It works again.
        await client.enqueue(site.machine.task(AFTER, "exit 0"))
        assert (await until(client, AFTER)).phase is Phase.SUCCEEDED
        assert set(site.starts().values()) == {1}


async def test_a_worker_cut_off_ends_its_attempt_before_the_next_one_starts(
    client: ActionsClient, site: Site, shared_etcd: EtcdServer
) -> None:
    async with open_proxy(int(shared_etcd.endpoint.rpartition(":")[2])) as proxy:
        with trio.fail_after(90), ExitStack() as stack:
            first = await beating_worker(stack, client, site, proxy.endpoint, shared_etcd.endpoint)
            proxy.stall()
            action = await until(client, ROOT)
            assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
            site.check_apart()
            await first.logged("claims_not_renewed_in_time")


@pytest.fixture
def network() -> Iterator[tuple[Network, str]]:
    if reason := why_not():
        pytest.skip(reason)
    with open_network() as opened:
        yield opened


@asynccontextmanager
async def machines(
    site: Site, network: tuple[Network, str], names: str
) -> AsyncIterator[tuple[ActionsClient, str]]:
    """A machine for each worker; gives a client, and the etcd that they reach over the network."""
    switch, address = network
    cluster = EtcdCluster(site.directory / "etcd", host=address)
    site.within = {name: switch.add(name) for name in names}
    with ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.start()
        [endpoint] = cluster.endpoints
        with trio.fail_after(90):
            async with (
                open_etcd(endpoint) as etcd,
                open_actions_client(etcd, prefix=site.prefix) as client,
            ):
                await client.start_watching()
                yield client, endpoint


async def test_a_machine_without_its_link_ends_its_attempt_before_the_next_one_starts(
    site: Site, network: tuple[Network, str]
) -> None:
    """Its packets vanish for longer than its lease; when they arrive again it works again."""
    async with machines(site, network, "ab") as (client, endpoint):
        with ExitStack() as stack:
            first = await beating_worker(stack, client, site, endpoint, endpoint)
            site.within["a"].disconnect()
            action = await until(client, ROOT)
            assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
            assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]
            assert site.starts() == {"a0.0": 1, "a0.1": 1}
            site.check_apart()
            await first.logged("claims_not_renewed_in_time")
            site.within["a"].connect()
            await first.logged("lease_lost")
            # The other one could run it, too, so that is stopped.
            site.within["b"].kill_all()
            await client.enqueue(site.machine.task(AFTER, "exit 0"))
            assert (await until(client, AFTER)).phase is Phase.SUCCEEDED
            assert set(site.starts().values()) == {1}


async def test_a_machine_that_loses_power_and_starts_again_repeats_no_attempt(
    site: Site, network: tuple[Network, str]
) -> None:
    """Nothing is left that could have noted the loss; the task's template allows one attempt."""
    async with machines(site, network, "a") as (client, endpoint):
        with ExitStack() as stack:
            worker = stack.enter_context(site.worker("a", endpoint))
            await worker.logged("working")
            await client.enqueue(site.machine.task(ROOT, site.beating()))
            await until(client, ROOT, Phase.RUNNING)
            await site.beats()
            site.within["a"].kill_all()
            stack.enter_context(site.worker("a", endpoint))
            action = await until(client, ROOT)
        assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
        assert [each.code for each in earlier_attempts(action)] == [WORKER_LOST]
        assert site.starts() == {"a0.0": 1, "a0.1": 1}


async def test_sigterm_hands_over_what_outlasts_the_grace(
    client: ActionsClient, site: Site, shared_etcd: EtcdServer
) -> None:
    with trio.fail_after(90), ExitStack() as stack:
        first = stack.enter_context(site.worker("a", shared_etcd.endpoint, "--grace", "1s"))
        await first.logged("working")
        script = 'if [ "$FLYTE_ATTEMPT_NUMBER" = 0 ]; then sleep 60; fi'
        await client.enqueue(site.machine.task(ROOT, script))
        await until(client, ROOT, Phase.RUNNING)
        await eventually(lambda: site.starts()["a0.0"] == 1)
        second = stack.enter_context(site.worker("b", shared_etcd.endpoint))
        await second.logged("working")
        first.signal(signal.SIGTERM)
        assert await first.wait() == 0
        action = await until(client, ROOT)
        assert (action.phase, action.status.attempts) == (Phase.SUCCEEDED, 2)
        assert [each.code for each in earlier_attempts(action)] == [WORKER_STOPPED]
        assert site.starts() == {"a0.0": 1, "a0.1": 1}


async def test_the_log_is_read_elsewhere_while_it_grows(
    client: ActionsClient, site: Site, shared_etcd: EtcdServer
) -> None:
    elsewhere = site.directory / "elsewhere"
    go = site.directory / "go"
    script = f"echo one; until [ -e {go} ]; do sleep 0.05; done; echo two"
    with trio.fail_after(60), ExitStack() as stack:
        worker = stack.enter_context(site.worker("a", shared_etcd.endpoint))
        await worker.logged("working")
        await client.enqueue(site.machine.task(ROOT, script))
        await until(client, ROOT, Phase.RUNNING)
        elsewhere.mkdir()
        logs = stack.enter_context(
            running(
                elsewhere,
                "logs",
                "r1",
                "-f",
                *("--endpoints", shared_etcd.endpoint, "--prefix", site.prefix.decode()),
                *("--executor-state-dir", elsewhere / "state"),
            )
        )
        shown = elsewhere / "0.out"
        await logs.until(lambda: shown.read_text() == "one\n")
        go.touch()
        assert await logs.wait() == 0
        assert shown.read_text() == "one\ntwo\n"


async def test_a_worker_restarts_at_the_port_that_its_tasks_know(
    site: Site, shared_etcd: EtcdServer
) -> None:
    addresses = []
    with trio.fail_after(60):
        for _ in range(2):
            with site.worker("a", shared_etcd.endpoint) as worker:
                addresses.append((await worker.logged("working"))["tasks"])
                worker.signal(signal.SIGTERM)
                assert await worker.wait() == 0
    assert addresses[0] == addresses[1]
