"""Runs on an etcd, and a service on it: the places that the reading commands read from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from etcd_actions import ActionId, ActionsClient, ErrorState, Phase, open_actions_client
from etcd_actions.actions.status import ActionStatus
from etcd_actions.cli.options import CommonOptions
from etcd_actions.config import Config, Flags, resolve
from etcd_actions.config.settings import BACKEND
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace, RunId
from etcd_actions.model.names import LABEL_TERMINAL_STATUS_RECORDED
from etcd_actions.runs.own_run_service import open_own_run_service
from etcd_actions.runs.run_index import RunIndex, open_run_index
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.web import Bind
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually, eventually_holds

TOKEN = "the-token-of-this-test"
TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1\nValueError: no"


@dataclass
class Site:
    """Where runs are.

    Attributes:
        client: Watches, records, and changes actions.
        etcd_flags: The flags with which a command reads from etcd.
        service_flags: Those with which it reads from the service.
    """

    client: ActionsClient
    etcd: Etcd
    keys: Keyspace
    index: RunIndex
    directory: Path
    etcd_flags: dict[str, str]
    service_flags: dict[str, str]

    def common(self, source: str) -> CommonOptions:
        """The settings of a command in this process."""
        flags = self.etcd_flags if source == "etcd" else self.service_flags
        values = resolve(BACKEND, [Flags({each.name: flags.get(each.name) for each in BACKEND})])
        return CommonOptions(Config(values, lambda _: ""))

    def limited(self, project: str) -> CommonOptions:
        """The settings of a command whose token may use one project."""
        file = self.directory / f"token-of-{project}"
        file.write_text(f"{TOKEN}-{project}\n")
        flags = self.service_flags | {"service_token_file": str(file)}
        values = resolve(BACKEND, [Flags({each.name: flags.get(each.name) for each in BACKEND})])
        return CommonOptions(Config(values, lambda _: ""))

    def arguments(self, source: str) -> list[str]:
        """The same as arguments of a command in a process of its own."""
        flags = self.etcd_flags if source == "etcd" else self.service_flags
        return [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]

    async def status(self, name: str, phase: Phase, error: ErrorState | None = None) -> None:
        """Report the phase of ``RUN/ACTION``."""
        run, _, action = name.partition("/")
        status = ActionStatus(phase=phase, attempts=1)
        await self.client.put_status(ActionId("p", "d", run, action), 1, status, error=error)

    async def put_run(self, run: str, *actions: str) -> None:
        """Create a run with children of its root, and wait until it has its record."""
        root = ActionId("p", "d", run, "a0")
        await self.client.enqueue(flyte.task(root, name="main"))
        for each in actions:
            await self.client.enqueue(flyte.task(ActionId("p", "d", run, each), "a0", name=each))
        await self.recorded(run, 0)

    async def marked(self, run: str) -> None:
        """Wait until all actions of a terminal run have the mark."""

        async def are_marked() -> bool:
            listing = await self.client.list_run_actions(RunId("p", "d", run))
            return all(
                each.metadata.labels.get(LABEL_TERMINAL_STATUS_RECORDED) == "true"
                for each in listing.actions
            )

        await eventually_holds(are_marked)

    async def recorded(self, run: str, phase: int) -> None:
        """Wait until the record of a run has a phase, or for 0 until it exists."""
        key = self.keys.run_record(ActionId("p", "d", run, "a0"))

        def is_there() -> bool:
            entry = self.index.get(key)
            return entry is not None and phase in (0, entry.phase)

        await eventually(is_there)


@asynccontextmanager
async def open_site(
    etcd: Etcd, server: EtcdServer, prefix: bytes, directory: Path
) -> AsyncIterator[Site]:
    """A client that records runs in etcd, and a service on it that needs a token."""
    keys = Keyspace(prefix)
    token = directory / "token"
    token.write_text(f"{TOKEN}\n{TOKEN}-q name=q projects=q\n")
    token.chmod(0o600)
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), token_file=token)
    async with (
        open_own_run_service(etcd, keys) as run_service,
        open_actions_client(etcd, prefix=prefix, run_service=run_service) as client,
        client.watching(grace=0),
        open_run_index(etcd, keys) as index,
        open_actions_server(
            client, settings, front=FrontDoor(client=client, keepalive=0.2, index=index)
        ) as served,
    ):
        yield Site(
            client,
            etcd,
            keys,
            index,
            directory,
            {"endpoints": server.endpoint, "prefix": prefix.decode()},
            {"service": str(served.address), "service_token_file": str(token)},
        )
