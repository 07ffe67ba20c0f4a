"""The page of a run: what it shows, to whom, and that nothing of it is more than text."""

from __future__ import annotations

import http.client
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import msgspec
import trio

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from etcd_actions.etcd.api import Delete, KeyRange, Txn
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.attempt_log import LocalLogs
from etcd_actions.model import ErrorState
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.front.action_views import action_id_of
from etcd_actions.server.front.attempt_logs import Logs
from etcd_actions.server.front.pages import in_order
from tests.server.conftest import LOOPBACK
from tests.server.front.run_calls import RunsAsker, create
from tests.support import flyte

ROOT = ActionId("p", "d", "r1", "a0")
CHILD = ActionId("p", "d", "r1", "c1")
PAGE = "/v2/domain/d/project/p/runs/r1"
HOSTILE = "</pre><script>alert(1)</script>\" onmouseover='x' &amp; \x00\x1b[2J"


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str


async def get(server: ActionsServer, path: str, token: str = "", method: str = "GET") -> Got:
    def ask() -> Got:
        connection = http.client.HTTPConnection(str(server.address), timeout=30)
        connection.request(method, path, headers={"authorization": token} if token else {})
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        got = Got(response.status, headers, response.read().decode())
        connection.close()
        return got

    return await trio.to_thread.run_sync(ask)


class Tags(HTMLParser):
    """All tags and their attributes, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


async def test_a_page_shows_the_actions_of_a_run_and_their_logs(
    client: ActionsClient, tmp_path: Path
) -> None:
    root = await client.enqueue(flyte.task(ROOT))
    child = flyte.task(CHILD, "a0")
    child.task.spec.short_name = HOSTILE
    await client.enqueue(child)
    error = ErrorState(code="E", kind="USER", message=HOSTILE)
    await client.put_status(CHILD, 1, ActionStatus(Phase.FAILED), error=error)
    place = AttemptDirectory(tmp_path, root.action.incarnation, 1)
    place.make()
    (place.path / "log").write_bytes(b"<b>a line</b>\xff\n")
    front = FrontDoor(
        client=client, keepalive=1.0, logs=Logs(client=client, source=LocalLogs(tmp_path))
    )
    async with open_actions_server(client, ServerSettings(bind=LOOPBACK), front=front) as server:
        got = await get(server, PAGE)
        assert got.status == 200
        assert "script-src" not in got.headers["content-security-policy"]
        assert "default-src 'none'" in got.headers["content-security-policy"]
        tags = Tags(got.text)
        assert "script" not in tags.tags
        assert not {name for name in tags.attributes if name.startswith("on")}
        assert "c1" in tags.text
        assert "FAILED" in tags.text
        # Once as the task, once as the error.
        assert tags.text.count("<script>alert(1)</script>") == 2
        assert tags.links == [f"{PAGE}/log/a0", f"{PAGE}/log/c1"]
        log = await get(server, f"{PAGE}/log/a0")
        assert (log.status, log.headers["content-type"]) == (200, "text/plain; charset=utf-8")
        assert log.headers["x-content-type-options"] == "nosniff"
        assert log.text == "<b>a line</b>�\n\n"
        assert (await get(server, f"{PAGE}/log/c1")).status == 404
        assert (await get(server, PAGE, method="HEAD")).text == ""
        assert (await get(server, PAGE, method="POST")).status == 405
        for none in (
            "/v2/domain/d/project/p/runs/r2",
            "/v2/domain/d",
            "/v2/domain//project//runs/",
        ):
            assert (await get(server, none)).status in (400, 404)
            assert (await get(server, none)).headers["content-type"].startswith("text/plain")


async def test_parents_that_go_round_or_are_missing_are_shown_once(client: ActionsClient) -> None:
    await client.enqueue(flyte.task(ROOT))
    found = []
    for name, parent in (("w", "a0"), ("x", "y"), ("y", "x"), ("z", "nowhere")):
        enqueued = await client.enqueue(flyte.task(ActionId("p", "d", "r1", name), "a0"))
        spec = msgspec.structs.replace(enqueued.action.spec, parent_action_name=parent)
        found.append(msgspec.structs.replace(enqueued.action, spec=spec))
    root = await client.get_task_action(ROOT)
    order = [(depth, action_id_of(each).name) for depth, each in in_order([root, *found])]
    assert sorted(name for _, name in order) == ["a0", "w", "x", "y", "z"]
    assert (1, "w") in order
    assert (0, "z") in order


async def test_a_run_that_has_expired_is_shown_by_its_record(
    asker: RunsAsker, client: ActionsClient
) -> None:
    await asker("CreateRun", create("r1"))
    key = client.keys.task_action(ROOT)
    await client.store.txn(Txn((), (Delete(KeyRange.of_key(key)),)))
    async with open_actions_server(
        client, ServerSettings(bind=LOOPBACK), front=FrontDoor(client=client, keepalive=1.0)
    ) as server:
        got = await get(server, PAGE)
    assert got.status == 200
    assert "envs.greet" in got.text


async def test_a_page_asks_for_the_token_that_methods_ask_for(
    client: ActionsClient, tmp_path: Path
) -> None:
    await client.enqueue(flyte.task(ROOT))
    tokens = tmp_path / "tokens"
    tokens.write_text("of-all\nof-p projects=p\nof-q projects=q\n")
    settings = ServerSettings(bind=LOOPBACK, token_file=tokens)
    front = FrontDoor(client=client, keepalive=1.0)
    async with open_actions_server(client, settings, front=front) as server:
        for path in (PAGE, f"{PAGE}/log/a0"):
            refused = await get(server, path)
            assert refused.status == 401
            assert "A browser sends no token" in refused.text
            assert "curl -H" in refused.text
            assert (await get(server, path, "Bearer wrong")).status == 401
            assert (await get(server, path, "Bearer of-q")).status == 403
        for token in ("of-all", "of-p"):
            assert (await get(server, PAGE, f"Bearer {token}")).status == 200
