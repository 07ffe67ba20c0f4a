"""The page's files: how they are served, and that no request reads another file."""

from __future__ import annotations

import gzip
import http.client
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trio
from flyteidl2.workflow import run_service_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from etcd_actions import ActionsClient
from etcd_actions.page.static_files import static_files
from etcd_actions.server import ActionsServer, ServerSettings, open_actions_server
from etcd_actions.server.front import FrontDoor
from etcd_actions.server.service_settings import PageSettings
from tests.server.conftest import LOOPBACK
from tests.support.everyday import first_everyday

RUN = "/v2/domain/d/project/p/runs/r1"
KINDS = {"js": "text/javascript", "css": "text/css", "html": "text/html", "svg": "image/svg+xml"}


class Got(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def get(
    server: ActionsServer, path: str, method: str = "GET", headers: dict[str, str] | None = None
) -> Got:
    def ask() -> Got:
        connection = http.client.HTTPConnection(str(server.address), timeout=30)
        connection.request(method, path, headers=headers or {})
        response = connection.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        got = Got(response.status, found, response.read())
        connection.close()
        return got

    return await trio.to_thread.run_sync(ask)


def settings(tokens: Path | None = None, *, actions: bool = False) -> ServerSettings:
    page = PageSettings(offers_actions=actions)
    return ServerSettings(bind=LOOPBACK, token_file=tokens, page=page)


@pytest.fixture
def front(client: ActionsClient) -> FrontDoor:
    return FrontDoor(client=client, keepalive=1.0)


async def test_each_file_has_a_strict_policy_and_a_tag(
    client: ActionsClient, front: FrontDoor
) -> None:
    async with open_actions_server(client, settings(), front=front) as server:
        paths = {f"/page/{name}": name for name in static_files()}
        for path, name in (*paths.items(), ("/", "index.html"), (RUN, "index.html")):
            got = await get(server, path)
            assert got.status == 200, path
            assert got.headers["content-type"].startswith(KINDS[name.rpartition(".")[2]])
            assert got.body == static_files()[name]
            policy = got.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
            assert "unsafe" not in policy
            assert got.headers["x-content-type-options"] == "nosniff"
            assert got.headers["cache-control"] == "no-cache"
            head = await get(server, path, "HEAD")
            assert (head.status, head.body) == (200, b"")
            assert head.headers["content-length"] == str(len(got.body))
            tag = got.headers["etag"]
            for known in (tag, f'"other", {tag}', tag.removeprefix("W/")):
                again = await get(server, path, headers={"if-none-match": known})
                assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
            assert (await get(server, path, headers={"if-none-match": '"x"'})).status == 200
            small = await get(server, path, headers={"accept-encoding": "br, gzip"})
            assert small.headers["content-encoding"] == "gzip"
            assert gzip.decompress(small.body) == got.body
            large = await get(server, path, headers={"accept-encoding": "gzip;q=0"})
            assert "content-encoding" not in large.headers
            posted = await get(server, path, "POST")
            assert (posted.status, posted.headers["allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    first_everyday(
        [
            "/page/",
            "/page/no.js",
            "/page/../static_files.py",
            "/page/%2e%2e/static_files.py",
            "/page/..%2fstatic_files.py",
            "/page//etc/passwd",
            "/page/%00",
            "/page/app.js/",
            "/v2/domain/d",
            "/v2/domain//project//runs/",
            "/index.html",
        ],
        2,
    ),
)
async def test_no_other_path_is_a_file(client: ActionsClient, front: FrontDoor, path: str) -> None:
    async with open_actions_server(client, settings(), front=front) as server:
        assert (await get(server, path)).status == 404


async def test_the_files_need_no_token_and_have_no_data(
    client: ActionsClient, front: FrontDoor, tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("secret\n")
    async with open_actions_server(client, settings(tokens), front=front) as server:
        assert (await get(server, "/")).status == 200
        config = await get(server, "/page/config.json")
        assert config.headers["cache-control"] == "no-store"
        assert config.json == {"actions": False, "token": True, "keepalive": 30.0}
    async with open_actions_server(client, settings(actions=True), front=front) as server:
        config = await get(server, "/page/config.json")
        assert config.json == {"actions": True, "token": False, "keepalive": 30.0}


async def test_without_the_page_nothing_is_served(client: ActionsClient, front: FrontDoor) -> None:
    without = ServerSettings(bind=LOOPBACK)
    async with open_actions_server(client, without, front=front) as server:
        for path in ("/", RUN, "/page/app.js", "/page/config.json", "/page/runs"):
            assert (await get(server, path)).status == 404


def test_the_document_loads_only_its_own_files_and_has_no_code() -> None:
    files = static_files()
    document = files["index.html"].decode()
    named = re.findall(r'(?:src|href)="/page/([^"]+)"', document)
    assert set(named) <= set(files)
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|https?://", document)
    for name, content in files.items():
        if name.endswith(".js"):
            code = content.decode()
            imported = re.findall(r'from "\./([^"]+)"', code)
            assert set(imported) <= set(named), name
            for banned in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("):
                assert banned not in code, name


def test_the_schema_is_flytes() -> None:
    text = static_files()["schema.js"].decode().partition("SCHEMA = ")[2].rstrip().rstrip(";")
    types = {each.full_name: each for each in _reachable(run_service_pb2.WatchActionsResponse)}
    for name, fields in json.loads(text).items():
        by_number = {str(each.number): each for each in types[name].fields}
        for number, (field_name, kind) in fields.items():
            assert (field_name, kind) == (by_number[number].name, _kind(by_number[number]))


def _reachable(message: Any) -> Iterator[Descriptor]:
    waiting, seen = [message.DESCRIPTOR], set()
    while waiting:
        type_ = waiting.pop()
        if type_.full_name not in seen:
            seen.add(type_.full_name)
            yield type_
            waiting += [each.message_type for each in type_.fields if each.message_type]


def _kind(field: FieldDescriptor) -> str:
    """The kind of a field as the schema writes it."""
    if field.message_type is None:
        return "string" if field.type == FieldDescriptor.TYPE_STRING else "number"
    if field.message_type.full_name == "google.protobuf.Timestamp":
        return "time"
    if field.message_type.GetOptions().map_entry:
        return "counts"
    repeated = "repeated " if field.is_repeated else ""
    return f"{repeated}{field.message_type.full_name}"
