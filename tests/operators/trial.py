"""Three members with TLS and users, a process with its page, and Prometheus with our alerts.

What an operator has: the page, the alerts, and ``doctor``, whose remedies are done as they stand.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import trio
import yaml
from flyteidl2.actions import actions_service_pb2 as pb

from etcd_actions import ActionId
from etcd_actions.etcd import User
from etcd_actions.testing.etcd_process import etcdctl_for
from tests.cli.command import Finished, Running, finish, running
from tests.deploy.test_alerts import ALERTS
from tests.deploy.test_prometheus import Prometheus, scraping
from tests.executor.tasks import Machine
from tests.server.clients import ConnectClient
from tests.support.chromium import Page
from tests.support.cluster import ROOT, Certificates, EtcdCluster, KeyPair, Member, ServerTls
from tests.support.partition import PartedCluster
from tests.support.waiting import eventually_holds

PREFIX: Final = "/registry/flyte.org/taskactions/"
USER: Final = User(name="actions", password="actions-pw-3d11")
_ROLE: Final = "etcd-actions"

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any, **named: Any) -> T:
    """Call what blocks: the relays of the network namespaces are tasks of this thread."""
    return await trio.to_thread.run_sync(partial(function, *arguments, **named))


class OwnCertificates(EtcdCluster):
    """A cluster each member of which has a certificate of its own."""

    certificates: Certificates

    def certify(self, member: Member, *, expired: bool = False, name: str = "127.0.0.1") -> KeyPair:
        """Give a member a certificate, which it reads at the next handshake."""
        names = (name, "localhost")
        return self.certificates.issue(member.name, *names, expired=expired, days=365)

    def _command(self, member: Member) -> list[str | Path]:
        command = [str(each) for each in super()._command(member)]
        pair = self.certify(member)
        own = {"--cert-file": pair.cert, "--key-file": pair.key}
        return [
            f"{flag}={own[flag]}" if (flag := each.partition("=")[0]) in own else each
            for each in command
        ]


class PlainCluster(OwnCertificates):
    """Three members on the loopback interface."""


class PartableCluster(OwnCertificates, PartedCluster):
    """Three members whose ways to each other can be cut."""


def server_tls(directory: Path) -> tuple[Certificates, ServerTls]:
    certificates = Certificates(directory / "tls")
    pair = certificates.issue("members", "127.0.0.1", "localhost")
    return certificates, ServerTls(pair=pair, ca=certificates.ca)


class Trial:
    """A cluster, a process on it, and an operator who looks; made by :func:`open_trial`."""

    def __init__(
        self,
        directory: Path,
        cluster: OwnCertificates,
        process: Running,
        machine: Machine,
        service: str,
        prometheus: Prometheus,
        page: Page,
    ) -> None:
        self.directory = directory
        self.cluster = cluster
        self.process = process
        self.page = page
        self._machine = machine
        self._service = service
        self._prometheus = prometheus
        self._runs = 0

    async def doctor(self) -> dict[str, dict[str, Any]]:
        """The findings of ``doctor`` as root that are worse than a note, by id."""
        done = await self.command("doctor", "-o", "json", user=ROOT)
        findings = json.loads(done.out)["findings"]
        versions = ("version-has-bugs", "version-loses-writes")
        return {
            each["id"]: each
            for each in findings
            if each["severity"] in ("error", "warning") and each["id"] not in versions
        }

    async def finds(
        self, kind: str, *members: Member, more: Collection[str] = ()
    ) -> dict[str, Any]:
        """The only finding is this one, or ``more``; returns it.

        Args:
            kind: Its id.
            members: The members that it is about; none for any.
            more: The ids of others that may be there.
        """
        about = {each.endpoint for each in members}
        found = await self._until_found(
            lambda found: (
                kind in found and set(found[kind]["members"]) == about if about else kind in found
            )
        )
        assert set(found) - {*more} == {kind}, found
        return found[kind]

    async def is_well(self) -> None:
        """Nothing is found any more, no alert fires, the page is content, and a run ends."""
        await self._until_found(lambda found: not found)
        await self.alerts()
        await self.page_shows("ready", f"{len(self.cluster.members)} of ")
        await self.runs_one()

    async def _until_found(
        self, accept: Callable[[dict[str, dict[str, Any]]], bool]
    ) -> dict[str, dict[str, Any]]:
        """What ``doctor`` finds, once it is accepted."""
        give_up = trio.current_time() + 60
        while not accept(found := await self.doctor()):
            assert trio.current_time() < give_up, json.dumps(found, indent=1)
        return found

    async def command(self, *arguments: str, user: User = USER) -> Finished:
        """A command of ours on this cluster."""
        connection = connecting(self.directory, self.cluster, user)
        return await in_thread(finish, *arguments, *connection)

    async def does(self, remedy: str) -> None:
        """Do the commands of etcdctl in a remedy as they stand, as root."""
        (commands,) = [part for part in remedy.split("; ") if part.startswith("etcdctl ")][:1]
        for each in commands.split(" && "):
            program, *arguments = shlex.split(each)
            assert program == "etcdctl", remedy
            settings = {} if "--endpoints" in arguments else {"ETCDCTL_ENDPOINTS": self._endpoints}
            done = await in_thread(
                subprocess.run,
                [str(etcdctl_for(self.cluster.binary.path)), *arguments],
                env={
                    "ETCDCTL_API": "3",
                    "ETCDCTL_CACERT": str(self.cluster.certificates.ca),
                    "ETCDCTL_USER": f"{ROOT.name}:{ROOT.password}",
                }
                | settings,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, (each, done.stderr)

    @property
    def _endpoints(self) -> str:
        return ",".join(f"https://{each}" for each in self.cluster.endpoints)

    async def alerts(self, *names: str) -> None:
        """Return once exactly these alerts fire."""
        fired: set[str] = set()

        async def do() -> bool:
            nonlocal fired
            found = await self._prometheus.values('ALERTS{alertstate="firing"}')
            fired = {each["metric"]["alertname"] for each in found}
            return fired == set(names)

        try:
            await eventually_holds(do)
        except trio.TooSlowError:
            raise AssertionError(f"expected {names}, and {fired} fired") from None

    async def page_shows(self, *texts: str) -> None:
        """Return once the page's view of the cluster has these texts."""
        if not await self.page.value("location.href.includes('view=cluster')"):
            await self.page.go(f"http://{self._service}/?view=cluster")
        text = "document.querySelector('main').innerText"
        await self.page.until(f"{json.dumps(texts)}.every(each => {text}.includes(each))")

    async def keep_screen(self, name: str) -> None:
        """A picture of the page, for who wants to look."""
        (self.directory / f"{name}.png").write_bytes(await self.page.screenshot())

    async def starts_one(self) -> str:
        """Enqueue a run, and return its name."""
        self._runs += 1
        name = f"r{self._runs}"
        action = self._machine.task(ActionId("p", "d", name, "a0"), "exit 0")
        client = ConnectClient(self._service)
        await in_thread(client.call, "Enqueue", pb.EnqueueRequest(action=action))
        return name

    async def ends(self, name: str) -> None:
        """A run ends well, and its end is recorded."""
        done = await self.command("wait", name, "--for", "success", "--timeout", "40s")
        assert done.code == 0, done.err

        async def is_recorded() -> bool:
            return (await self.command("list", "--unrecorded", "-o", "name")).out == ""

        await eventually_holds(is_recorded)

    async def runs_one(self) -> None:
        """A new run ends well."""
        await self.ends(await self.starts_one())


def connecting(directory: Path, cluster: OwnCertificates, user: User) -> list[str]:
    """The flags of a connection."""
    file = directory / f"{user.name}.password"
    if not file.exists():
        file.write_text(user.password or "")
        file.chmod(0o600)
    endpoints = ",".join(f"https://{each}" for each in cluster.endpoints)
    return [
        *("--endpoints", endpoints, "--cacert", str(cluster.certificates.ca)),
        *("--user", user.name, "--password-file", str(file), "--prefix", PREFIX),
    ]


def impatient_rules(directory: Path) -> Path:
    """The alerts, each after a second: a trial has no minutes."""
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in rules["groups"][0]["rules"]:
        if "for" in rule:
            rule["for"] = "1s"
    file = directory / "alerts.yml"
    file.write_text(yaml.safe_dump(rules))
    return file


def add_users(cluster: EtcdCluster) -> None:
    """Root, and the user of docs/least-privilege.md."""
    cluster.add_user(ROOT, "root")
    cluster.settle("role", "add", _ROLE, done="already exists")
    for prefix in (PREFIX, f"/etcd-actions{PREFIX}"):
        grant = ("role", "grant-permission", "--prefix=true", _ROLE, "readwrite", prefix)
        cluster.settle(*grant)
    cluster.add_user(USER, _ROLE)
    cluster.settle("auth", "enable", done="user name is empty")
    cluster.root = ROOT


@asynccontextmanager
async def open_trial(
    directory: Path, cluster: OwnCertificates, page: Page, flags: Sequence[str] = ()
) -> AsyncIterator[Trial]:
    """Start a cluster with users, a process with a local executor, and Prometheus."""
    await in_thread(cluster.start)
    await in_thread(add_users, cluster)
    machine = Machine(directory)
    arguments: Iterable[str | Path] = (
        *("run", "--executor", "local", "--python", sys.executable),
        "--executor-fork-server=false",
        *("--executor-state-dir", machine.state_dir, "--blob-dir", directory / "blobs"),
        *connecting(directory, cluster, USER),
        *flags,
    )
    with running(directory, *arguments) as process:
        service = (await process.logged("serving"))["listen"]
        target = (await process.logged("monitoring"))["listen"]
        async with scraping(directory, target, impatient_rules(directory)) as prometheus:
            trial = Trial(directory, cluster, process, machine, service, prometheus, page)
            await trial.is_well()
            yield trial
            # It reports the loss of its stream.
            await page.go("about:blank")
        machine.end_all()
