"""The service as `etcd-actions run` has it, in this process, with what the page shows.

There is no executor: what changes, tests change. The logs of attempts are files of a directory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral, Outputs

from etcd_actions import ActionId, ActionsClient, Phase, WatchingSettings, open_actions_client
from etcd_actions._internal.containment import Containment
from etcd_actions.actions.status import ActionStatus
from etcd_actions.app.cluster_sources import cluster_sources
from etcd_actions.app.front_door import open_front_door
from etcd_actions.app.listeners import server_settings
from etcd_actions.app.run_services import open_run_services
from etcd_actions.config import SETTINGS, Config
from etcd_actions.config.resolution import resolve
from etcd_actions.config.settings import READY_WITHIN, SHARDS
from etcd_actions.config.sources import Flags
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.client import EtcdClient
from etcd_actions.etcd.member_states import open_member_states
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempt_log import LocalLogs
from etcd_actions.model import ErrorState, Keyspace
from etcd_actions.monitoring import Health
from etcd_actions.server import ActionsServer, open_actions_server
from tests.support.page_data import Run, put_runs


@dataclass(frozen=True, kw_only=True)
class PageSite:
    """A service that serves the page; made by :func:`open_page_site`.

    Attributes:
        etcd: The connection.
        keys: Its keys.
        client: Reads and changes actions.
        server: The server.
        directory: The logs, the blobs and the outputs are below it.
    """

    etcd: Etcd
    keys: Keyspace
    client: ActionsClient
    server: ActionsServer
    directory: Path

    @property
    def url(self) -> str:
        """The page's URL, without a path."""
        return f"http://{self.server.address}"

    def url_of(self, run: Run) -> str:
        """The URL of a run's page."""
        return self.url + run.path

    async def put(self, *runs: Run) -> None:
        """Write runs into etcd."""
        await put_runs(self.etcd, self.keys, runs)

    async def report(
        self,
        action_id: ActionId,
        phase: Phase,
        *,
        attempt: int = 1,
        error: ErrorState | None = None,
    ) -> None:
        """Report a phase of an action, as an executor would."""
        await self.client.put_status(action_id, attempt, ActionStatus(phase), error=error)

    async def log_of(self, action_id: ActionId, attempt: int = 1) -> Path:
        """The file of an attempt's log, whose directory exists."""
        action = await self.client.get_task_action(action_id)
        place = AttemptDirectory(self.directory / "logs", action.incarnation, attempt)
        if not place.path.exists():
            place.make()
        return place.path / "log"

    async def put_outputs(self, action_id: ActionId, values: Mapping[str, object]) -> None:
        """Write the file of an action's outputs, whose run has its outputs in our directory."""
        action = await self.client.get_task_action(action_id)
        folder = Path(action.output_uri)
        folder.mkdir(parents=True, exist_ok=True)
        outputs = Outputs(literals=_named(values))
        (folder / "outputs.pb").write_bytes(outputs.SerializeToString())


def with_data(run: Run, directory: Path, inputs: Mapping[str, object]) -> Run:
    """A run whose actions have these inputs, and their outputs in a directory."""
    folder = directory / "blobs" / "runs" / run.name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "inputs.pb"
    file.write_bytes(Inputs(literals=_named(inputs)).SerializeToString())
    return replace(run, input_uri=str(file), output_base=str(folder))


@asynccontextmanager
async def open_page_site(
    etcd: Etcd, prefix: bytes, directory: Path, **flags: str
) -> AsyncIterator[PageSite]:
    """Serve, with settings by the names of the flags, until the context ends."""
    settings = {"listen": "127.0.0.1:0", "blob_dir": str(directory / "blobs")} | flags
    config = Config(resolve(SETTINGS, [Flags(settings)]), None)
    served = server_settings(config)
    assert served is not None
    keys, containment = Keyspace(prefix), Containment()
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        run_service = await enter(open_run_services(etcd, keys, config, containment, served=True))
        client = await enter(
            open_actions_client(
                etcd,
                prefix=prefix,
                run_service=run_service,
                settings=WatchingSettings(shards=config[SHARDS] or 0),
                containment=containment,
            )
        )
        await client.start_watching()
        health = Health(client, etcd, prefix, silence_limit=config[READY_WITHIN])
        members = await enter(open_member_states(cast(EtcdClient, etcd)))
        cluster = cluster_sources(members, health, lambda: None)
        front = await enter(open_front_door(config, client, etcd, cluster))
        assert front.logs is not None
        logs = replace(front.logs, source=LocalLogs(directory / "logs"))
        front = replace(front, logs=logs, reads_local_files=True)
        server = await enter(open_actions_server(client, served, front=front))
        yield PageSite(etcd=etcd, keys=keys, client=client, server=server, directory=directory)


def _named(values: Mapping[str, object]) -> Iterable[NamedLiteral]:
    return [NamedLiteral(name=name, value=_literal(value)) for name, value in values.items()]


def _literal(value: object) -> Literal:
    match value:
        case bool():
            primitive = Primitive(boolean=value)
        case int():
            primitive = Primitive(integer=value)
        case float():
            primitive = Primitive(float_value=value)
        case _:
            primitive = Primitive(string_value=str(value))
    return Literal(scalar=Scalar(primitive=primitive))
