"""Commands beside a namespace for each project and domain."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio
from google.protobuf.json_format import MessageToJson

from etcd_actions import ActionId, ActionsClient, Phase, open_actions_client
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.etcd.api import Etcd
from tests.cli.command import Finished, finish, running
from tests.support import flyte
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually_holds

TEMPLATE = "{project}-{domain}"
ONE = ActionId("one", "d", "r1", "a0")
TWO = ActionId("two", "d", "r1", "a0")


class Site:
    def __init__(self, client: ActionsClient, directory: Path, *flags: str) -> None:
        self.client = client
        self.directory = directory
        self.flags = flags

    async def finish(self, *arguments: str, stdin: str = "", **env: str) -> Finished:
        command = partial(finish, *arguments, *self.flags, stdin=stdin, **env)
        return await trio.to_thread.run_sync(command)

    async def done(self, *arguments: str, stdin: str = "", **env: str) -> str:
        ended = await self.finish(*arguments, stdin=stdin, **env)
        assert ended.code == ExitCode.OK, ended.err
        return ended.out


@pytest.fixture
async def site(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> AsyncIterator[Site]:
    async with open_actions_client(etcd, prefix=prefix, namespace_template=TEMPLATE) as client:
        yield Site(
            client, tmp_path, "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode()
        )


ENV = {"ETCD_ACTIONS_NAMESPACE_TEMPLATE": TEMPLATE}


@pytest.mark.slow
async def test_each_command_finds_the_action_that_is_meant(site: Site) -> None:
    """Written, changed and shown by project; by one namespace where that is asked for."""
    for root in (ONE, TWO):
        await site.done("enqueue", "-", stdin=MessageToJson(flyte.task(root)), **ENV)
    await site.done("status", "one/d/r1/a0", "RUNNING", **ENV)
    await site.done("abort", "two/d/r1/a0", **ENV)
    assert (await site.client.get_task_action(ONE)).phase is Phase.RUNNING
    assert (await site.client.get_task_action(TWO)).phase is Phase.ABORTED

    listed = await site.done("list", "--output", "jsonl", **ENV)
    rows = [json.loads(line) for line in listed.splitlines()]
    assert {(row["namespace"], row["project"], row["phase"]) for row in rows} == {
        ("one-d", "one", "RUNNING"),
        ("two-d", "two", "ABORTED"),
    }
    # One namespace that is asked for is a filter of what is shown.
    listed = await site.done("list", "--namespace", "two-d", "--output", "jsonl", **ENV)
    assert [json.loads(line)["project"] for line in listed.splitlines()] == ["two"]
    tree = json.loads(await site.done("tree", "r1", "--output", "json", **ENV))
    assert [each["namespace"] for each in tree["trees"]] == ["one-d", "two-d"]
    tree = json.loads(await site.done("tree", "two/d/r1", "--output", "json", **ENV))
    assert [each["project"] for each in tree["trees"]] == ["two"]
    for name, namespace in (("one/d/r1/a0", "one-d"), ("two-d/r1-a0", "two-d")):
        got = json.loads(await site.done("get", name, "--output", "json", **ENV))
        assert got["namespace"] == namespace
    ambiguous = await site.finish("get", "r1-a0", **ENV)
    assert ambiguous.code == ExitCode.USAGE
    assert "give one of one/d/r1/a0, two/d/r1/a0" in ambiguous.complaint


@pytest.mark.slow
async def test_what_is_left_in_one_namespace_can_be_ended(
    site: Site, etcd: Etcd, prefix: bytes
) -> None:
    """After the template was switched on ``--namespace`` still finds what was there before."""
    async with open_actions_client(etcd, prefix=prefix) as before:
        await before.enqueue(flyte.task(ONE))
        missing = await site.finish("abort", "one/d/r1/a0", **ENV)
        assert missing.code == ExitCode.NOT_FOUND
        await site.done("abort", "one/d/r1/a0", "--namespace", "flyte", **ENV)
        assert (await before.get_task_action(ONE)).phase is Phase.ABORTED


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "enqueue"])
async def test_new_actions_have_one_place(site: Site, command: str) -> None:
    arguments = {"run": (), "enqueue": ("-",)}[command]
    both = ("--namespace", "flyte", "--namespace-template", TEMPLATE)
    ended = await site.finish(command, *arguments, *both, stdin=MessageToJson(flyte.task(ONE)))
    assert ended.code == ExitCode.USAGE
    for word in ("--namespace keeps", "--namespace-template", "leave one of them out"):
        assert word in ended.complaint


@pytest.mark.slow
async def test_one_run_watches_and_marks_in_every_namespace(site: Site) -> None:
    with running(site.directory, "run", *site.flags, "--namespace-template", TEMPLATE) as service:
        started = await service.logged("started")
        assert started["namespace"] == TEMPLATE
        address = (await service.logged("serving"))["listen"]
        for root in (ONE, TWO):
            asked = ("--service", address)
            await site.done("enqueue", "-", *asked, stdin=MessageToJson(flyte.task(root)))
            name = f"{root.project}/d/r1/a0"
            await site.done("status", name, "SUCCEEDED", *asked)

        async def marked() -> bool:
            return all(
                [(await site.client.get_task_action(root)).is_recorded for root in (ONE, TWO)]
            )

        await eventually_holds(marked, within=30)


@pytest.mark.parametrize("text", ["{project}-{org}", "flyte", "{project}/{domain}"])
async def test_a_template_that_makes_no_namespaces_is_a_usage_error(text: str) -> None:
    command = partial(finish, "list", "--namespace-template", text)
    ended = await trio.to_thread.run_sync(command)
    assert ended.code == ExitCode.USAGE
    assert "--namespace-template" in ended.complaint
