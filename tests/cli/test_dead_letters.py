"""``etcd-actions dead-letters``, while the service runs in another process, and without one."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import pytest
import trio

from etcd_actions import ActionId, ActionsClient, Phase
from etcd_actions.cli.commands.dead_letters import DeadLetterSelection
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.dead_letters import DeadLetter
from etcd_actions.errors import ConfigError, RunServiceRejected
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.web import Bind
from tests.cli.command import Finished, finish
from tests.record.test_outbox import ROOT, Scripted, is_idle, named, tell, watching
from tests.support import flyte
from tests.support.documents import block
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually

# Each starts processes.
pytestmark = pytest.mark.slow

NO = RunServiceRejected("INVALID_ARGUMENT: no spec", code=3)


class Site:
    def __init__(self, server: EtcdServer, prefix: bytes, *flags: str) -> None:
        self._flags = flags or ("--endpoints", server.endpoint, "--prefix", prefix.decode())

    async def run(self, *arguments: str) -> Finished:
        command = partial(finish, "dead-letters", *arguments, *self._flags)
        return await trio.to_thread.run_sync(command)


async def refuse(client: ActionsClient, service: Scripted, *names: str) -> None:
    service.failures["record", "a0"] = [NO]
    await client.enqueue(flyte.task(ROOT))
    # Else the record may be made, and refused, of what is running already.
    await eventually(lambda: len(client.statistics().dead_letters) == 1)
    await tell(client, "a0", [Phase.RUNNING])
    for name in names:
        service.failures["record", name] = [NO]
        await client.enqueue(flyte.task(named(name), "a0"))
        await tell(client, name, [Phase.SUCCEEDED])
    await eventually(lambda: len(client.statistics().dead_letters) == 1 + len(names))
    await eventually(lambda: is_idle(client))


async def test_list_retry_and_delete(shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes) -> None:
    site, service = Site(shared_etcd, prefix), Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse(client, service, "c1", "c2")
        await etcd.delete(KeyRange.of_key(Keyspace(prefix).task_action(named("c2"))))
        await eventually(lambda: is_idle(client))
        await etcd.put(Keyspace(prefix).dead_letters + b"x", b"garbage")

        listed = await site.run("list")
        assert listed.code == ExitCode.OK
        rows = [json.loads(line) for line in listed.out.splitlines()]
        assert [row["type"] for row in rows] == ["DEAD_LETTER"] * 3 + ["UNREADABLE"]
        assert [row["object"] for row in rows[:3]] == ["there", "there", "gone"]
        assert [row["phase"] for row in rows[:3]] == ["UNSPECIFIED", "SUCCEEDED", "SUCCEEDED"]
        root = rows[0]
        assert (root["what"], root["code"], root["times"]) == ("record", "INVALID_ARGUMENT", 1)
        assert (root["project"], root["domain"], root["run"], root["action"]) == (
            "p",
            "d",
            "r1",
            "a0",
        )
        document = json.loads((await site.run("list", "-o", "json", "p/d/r1/c1")).out)
        assert [row["action"] for row in document["dead_letters"]] == ["c1"]
        table = (await site.run("list", "-o", "table")).out.splitlines()
        assert table[0].split() == [
            "ACTION",
            "CALL",
            "PHASE",
            "SINCE",
            "TIMES",
            "OBJECT",
            "RETRY",
            "WHY",
        ]
        assert len(table) == 5
        # The code once, though the words that came by gRPC begin with it.
        assert " ".join(table[1].split()).endswith("there INVALID_ARGUMENT: no spec"), table[1]

        # Refused again, by a name of each kind.
        service.failures["record", "a0"] = [NO]
        service.told.clear()
        again = await site.run("retry", "--wait", "r1-a0")
        assert again.code == ExitCode.ACTION
        said = "rejected again: the record of p/d/r1/a0: INVALID_ARGUMENT: no spec"
        assert again.err.splitlines()[-1].endswith(said)
        accepted = await site.run("retry", "--wait", "flyte/r1-c1", "p/d/r1/c2", "-o", "json")
        assert (accepted.code, accepted.err) == (ExitCode.OK, "")
        assert json.loads(accepted.out)["changes"] == [
            {"name": row["key"], "result": "accepted"} for row in rows[1:3]
        ]
        assert [each for each in service.told if each[1] == "c2"] == [
            ("record", "c2", Phase.SUCCEEDED),
            ("status", "c2", Phase.SUCCEEDED),
        ]
        # What is accepted is no dead letter any more.
        gone = await site.run("retry", "flyte/r1-c1")
        assert gone.code == ExitCode.NOT_FOUND

        # What cannot be read is named, and can be deleted only.
        everything = await site.run("retry", "--all", "--wait")
        assert everything.code == ExitCode.OK
        assert "not a dead letter" in everything.err
        key = (Keyspace(prefix).dead_letters + b"x").decode()
        deleted = await site.run("delete", key, "-o", "name")
        assert (deleted.code, deleted.out, deleted.err) == (ExitCode.OK, f"{key}\n", "")
        assert await client.dead_letters() == []
        assert (await site.run("retry", "--all", "-o", "json")).out == '{\n  "changes": []\n}\n'
        nothing = await site.run("retry", "--all")
        assert (nothing.code, nothing.complaint) == (
            ExitCode.OK,
            "etcd-actions: there are no dead letters",
        )


async def test_through_the_service(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    """The same results; a token that is limited to another project gets none of them."""
    service, tokens = Scripted(), tmp_path / "tokens"
    tokens.write_text("all-of-it\nlimited name=bob projects=q\n")
    limited = tmp_path / "limited"
    limited.write_text("limited\n")
    settings = ServerSettings(bind=Bind("127.0.0.1", 0), token_file=tokens)
    async with (
        watching(etcd, prefix, service) as client,
        open_actions_server(client, settings) as server,
    ):
        await refuse(client, service, "c1")
        flags = ("--service", str(server.address), "--service-token-file")
        site = Site(shared_etcd, prefix, *flags, str(tokens))
        direct = await Site(shared_etcd, prefix).run("list")
        listed = await site.run("list")
        assert (listed.code, listed.out) == (ExitCode.OK, direct.out), listed.err
        assert [json.loads(line)["object"] for line in listed.out.splitlines()] == ["there"] * 2
        apart = Site(shared_etcd, prefix, *flags, str(limited))
        assert ((nothing := await apart.run("list")).code, nothing.out) == (ExitCode.OK, "")
        assert (await apart.run("delete", "r1-a0")).code == ExitCode.NOT_FOUND

        service.failures["record", "a0"] = [NO]
        again = await site.run("retry", "--wait", "r1-a0")
        assert again.code == ExitCode.ACTION
        assert "rejected again: the record of p/d/r1/a0: INVALID_ARGUMENT: no spec" in again.err
        accepted = await site.run("retry", "--wait", "r1/c1", "-o", "json")
        (change,) = json.loads(accepted.out)["changes"]
        assert (accepted.code, change["result"]) == (ExitCode.OK, "accepted")
        deleted = await site.run("delete", "--all")
        assert (deleted.code, deleted.complaint) == (
            ExitCode.OK,
            "etcd-actions: deleted the record of p/d/r1/a0",
        )
        assert await client.dead_letters() == []


def test_a_change_needs_a_name_of_one_run_or_action() -> None:
    """The object of ``r/b-c1`` has the name that ``r-b/c1`` has, and ``r-b`` is a run, too."""
    dead_letters = [
        DeadLetter(
            dead_letter_key=f"/dead/{number}".encode(),
            dead_letter_revision=1,
            dead_letter_created=1,
            size=1,
            key=f"/actions/{namespace}/{run}-{action}".encode(),
            action_id=ActionId("p", domain, run, action),
        )
        for number, (namespace, domain, run, action) in enumerate(
            [("n", "d", "r", "b"), ("n", "d", "r-b", "c1"), ("m", "e", "r-b", "a0")]
        )
    ]

    def selected(name: str, *, for_change: bool = True) -> list[DeadLetter]:
        return DeadLetterSelection([name], None, for_change=for_change).of(dead_letters)[0]

    assert selected("r-b", for_change=False) == dead_letters
    with pytest.raises(ConfigError, match="give one of p/d/r-b, p/d/r/b, p/e/r-b"):
        selected("r-b")
    for name, number in {"p/d/r-b": 1, "p/d/r/b": 0, "r/b": 0, "r": 0, "r-b-a0": 2}.items():
        assert selected(name) == [dead_letters[number]], name


async def test_what_the_document_shows(shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes) -> None:
    """The commands of docs/commands.md, and what they print but for the time."""
    shown = block("docs/commands.md", "console", 2)
    site, service = Site(shared_etcd, prefix), Scripted()
    async with watching(etcd, prefix, service) as client:
        await client.enqueue(flyte.task(ROOT))
        service.failures["record", "c1"] = [NO]
        await client.enqueue(flyte.task(named("c1"), "a0"))
        await tell(client, "c1", [Phase.SUCCEEDED])
        await eventually(lambda: len(client.statistics().dead_letters) == 1)
        await eventually(lambda: is_idle(client))
        for command, expected in shown.steps():
            name, group, *arguments = command.split()
            assert (name, group) == ("etcd-actions", "dead-letters")
            table = ("-o", "table") if arguments == ["list"] else ()
            done = await site.run(*arguments, *table)
            assert done.code == ExitCode.OK, done.err
            printed = done.out if table else done.err
            assert _words(printed) == _words("\n".join(expected))


def _words(text: str) -> list[list[str]]:
    """Of each line; whichever project it is of, and however long ago something was."""
    text = re.sub(r"\S+ ago", "1s ago", text.replace("flytesnacks/development", "p/d"))
    return [line.split() for line in text.splitlines()]


async def test_where_nobody_is_elected_the_request_stays(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    site, service = Site(shared_etcd, prefix), Scripted()
    async with watching(etcd, prefix, service) as client:
        await refuse(client, service, "c1")
    asked = await site.run("retry", "--all", "--wait", "--timeout", "1")
    assert asked.code == ExitCode.UNAVAILABLE
    assert "there is no leader: the requests stay" in asked.err
    assert "2 of 2 requests have no result within 1 s" in asked.err
    rows = [json.loads(line) for line in (await site.run("list")).out.splitlines()]
    assert all(row["retry_requested_at"] for row in rows)
    service = Scripted()
    async with watching(etcd, prefix, service) as client:
        with trio.fail_after(30):
            for letter in await client.dead_letters():
                assert await client.wait_dead_letter(letter) is None
    assert {what for what, _, _ in service.told} == {"record", "status"}


@pytest.mark.parametrize("command", ["retry", "delete"])
async def test_which_ones_has_to_be_said(
    shared_etcd: EtcdServer, prefix: bytes, command: str
) -> None:
    site = Site(shared_etcd, prefix)
    assert (await site.run(command)).code == ExitCode.USAGE
    assert (await site.run(command, "--all", "r1-a0")).code == ExitCode.USAGE
    assert (await site.run(command, "r1-a0")).code == ExitCode.NOT_FOUND
