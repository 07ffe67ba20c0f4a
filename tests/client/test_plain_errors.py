"""What the body raises leaves each public context as it is, nested in each order."""

# ruff: noqa: PT012 - what must raise is a context with its body

from __future__ import annotations

import ast
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
import trio

import etcd_actions
from etcd_actions import ActionId, ActionsClient, open_actions_client, open_etcd
from etcd_actions.embedded.embedded_etcd import open_embedded_etcd
from etcd_actions.errors import BackgroundFailure, NotFound
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.etcd.election import open_election
from etcd_actions.etcd.group_commit import open_group_commit
from etcd_actions.etcd.member_states import open_member_states
from etcd_actions.etcd.paging import open_pages
from etcd_actions.etcd.quorum import open_quorum_monitor
from etcd_actions.etcd.session import open_session
from etcd_actions.executor import ExecutorSettings, open_executor
from etcd_actions.model import Keyspace
from etcd_actions.monitoring import open_monitoring
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.pipeline.watching_settings import WatchingSettings
from etcd_actions.registry.registry import open_registry
from etcd_actions.run_service import open_run_service
from etcd_actions.runs.own_run_service import open_own_run_service
from etcd_actions.runs.run_index import open_run_index
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.shards import ShardKeys, open_membership
from etcd_actions.testing import open_proxy
from etcd_actions.web import Bind
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday

ROOT = ActionId("p", "d", "r1", "a0")
LOOPBACK = Bind("127.0.0.1", 0)


@dataclass(frozen=True)
class Scene:
    """What the contexts are opened with."""

    server: EtcdServer
    etcd: Etcd
    client: ActionsClient
    prefix: bytes
    directory: Path

    @property
    def executor_settings(self) -> ExecutorSettings:
        return ExecutorSettings(
            python=Path(sys.executable),
            service="127.0.0.1:1",
            state_dir=self.directory / "state",
            fork_server=False,
        )


Context = AbstractAsyncContextManager[object]
CONTEXTS: dict[str, Callable[[Scene], Context]] = {
    "open_etcd": lambda s: open_etcd(s.server.endpoint),
    "open_etcd, gateway": lambda s: open_etcd(s.server.endpoint, transport="gateway"),
    "Etcd.watch": lambda s: s.etcd.watch(),
    "open_actions_client": lambda s: open_actions_client(s.etcd, prefix=s.prefix),
    "subscribe": lambda s: s.client.subscribe(ROOT),
    "subscribe_run": lambda s: s.client.subscribe_run(ROOT.run_id),
    "subscribe_all": lambda s: s.client.subscribe_all(),
    "open_claims": lambda s: s.client.open_claims(),
    "open_run_service": lambda s: open_run_service("127.0.0.1:1"),
    "open_processor": lambda s: open_processor(s.etcd, prefix=s.prefix),
    "open_membership": lambda s: open_membership(s.etcd, ShardKeys(Keyspace(s.prefix), "flyte")),
    "open_any_processor": lambda s: open_actions_client(
        s.etcd, prefix=s.prefix, settings=WatchingSettings(shards=2)
    ),
    "open_group_commit": lambda s: open_group_commit(s.etcd),
    "open_election": lambda s: open_election(s.etcd, s.prefix + b"election"),
    "open_session": lambda s: open_session(s.etcd, 15),
    "open_pages": lambda s: open_pages(s.etcd, KeyRange.of_prefix(s.prefix)),
    "open_quorum_monitor": lambda s: open_quorum_monitor(cast(EtcdClient, s.etcd)),
    "open_member_states": lambda s: open_member_states(cast(EtcdClient, s.etcd)),
    "open_run_index": lambda s: open_run_index(s.etcd, s.client.keys),
    "open_registry": lambda s: open_registry(s.etcd, s.client.store, s.client.keys),
    "open_own_run_service": lambda s: open_own_run_service(s.etcd, s.client.keys),
    "open_actions_server": lambda s: open_actions_server(s.client, ServerSettings(bind=LOOPBACK)),
    "open_monitoring": lambda s: open_monitoring(
        s.client, s.etcd, LOOPBACK, prefix=s.prefix, silence_limit=10
    ),
    "open_executor": lambda s: open_executor(s.client, s.executor_settings),
    "open_proxy": lambda s: open_proxy(s.server.port),
    "open_embedded_etcd": lambda s: open_embedded_etcd(s.directory / "etcd", client_port=0),
}
# An etcd of its own takes too long to be nested in all others, and of so many proxies one would
# find that another process of the machine has taken its port.
NESTED = [name for name in CONTEXTS if name not in {"open_embedded_etcd", "open_proxy"}]
OPENED_BY_OTHERS = {
    "open_channel",
    "open_connection",
    "open_executor_with",
    "open_fork_server",
    "open_guard",
    "open_listener",
    "open_replica",
    "open_spool",
    "open_task_index",
}
WITHOUT_TASKS = {"Etcd.watch", "subscribe", "subscribe_run", "subscribe_all", "open_embedded_etcd"}


@pytest.fixture
async def scene(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> AsyncIterator[Scene]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield Scene(shared_etcd, etcd, client, prefix, tmp_path)


@pytest.mark.parametrize("name", CONTEXTS)
async def test_the_error_of_the_body_comes_out_of_each_context(scene: Scene, name: str) -> None:
    error = NotFound("no such action")
    with pytest.raises(NotFound) as raised:
        async with CONTEXTS[name](scene):
            raise error
    assert raised.value is error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ExceptionGroup("own", [ValueError()])])
@pytest.mark.parametrize("order", first_everyday([1, -1]), ids=["inwards", "outwards"])
async def test_it_comes_out_of_all_of_them_at_once(
    scene: Scene, order: int, error: BaseException
) -> None:
    with pytest.raises(type(error)) as raised:
        async with AsyncExitStack() as stack:
            for name in NESTED[::order]:
                await stack.enter_async_context(CONTEXTS[name](scene))
            raise error
    assert raised.value is error


@pytest.mark.slow
@pytest.mark.parametrize("outer", NESTED)
async def test_it_comes_out_of_each_in_each(scene: Scene, outer: str) -> None:
    for inner in NESTED:
        error = NotFound("no such action")
        with pytest.raises(NotFound) as raised:
            async with CONTEXTS[outer](scene), CONTEXTS[inner](scene):
                raise error
        assert raised.value is error


@pytest.mark.parametrize("name", first_everyday(CONTEXTS, 8))
async def test_a_cancellation_ends_where_it_was_asked_for(scene: Scene, name: str) -> None:
    with trio.CancelScope() as scope:
        async with CONTEXTS[name](scene):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


@pytest.mark.parametrize("name", [name for name in CONTEXTS if name not in WITHOUT_TASKS])
async def test_a_crash_of_a_task_has_one_form(scene: Scene, name: str) -> None:
    error = LookupError("crash")

    async def crash() -> None:
        raise error

    before = len(trio.lowlevel.current_task().child_nurseries)
    with pytest.raises(BackgroundFailure) as raised:
        async with CONTEXTS[name](scene):
            own = trio.lowlevel.current_task().child_nurseries[before:]
            own[-1].start_soon(crash)
            await trio.sleep_forever()
    assert raised.value.__cause__ is error


async def test_a_crash_in_a_claim_or_a_page_is_no_error_of_etcd(scene: Scene) -> None:
    """Errors of a read are the reader's; they are not taken for a crash."""
    missing = KeyRange.of_prefix(scene.prefix)
    revision = (await scene.etcd.range(missing)).revision
    with pytest.raises(Exception, match="revision") as raised:
        async with open_pages(scene.etcd, missing, revision=revision + 1_000) as pages:
            async for _ in pages:
                raise AssertionError
    assert not isinstance(raised.value, (BackgroundFailure, BaseExceptionGroup))


def test_each_context_manager_of_the_package_is_here() -> None:
    package = Path(etcd_actions.__file__).parent
    found = set()
    for path in package.rglob("*.py"):
        if path.relative_to(package).parts[0] in {"app", "cli", "doctor", "_internal"}:
            continue
        text = path.read_text()
        # To parse the whole package takes a second.
        for each in ast.walk(ast.parse(text)) if "async def open_" in text else ():
            if isinstance(each, ast.AsyncFunctionDef) and each.name.startswith("open_"):
                decorators = {ast.unparse(decorator) for decorator in each.decorator_list}
                if "asynccontextmanager" in decorators:
                    found.add(each.name)
    assert found - OPENED_BY_OTHERS <= set(CONTEXTS)
