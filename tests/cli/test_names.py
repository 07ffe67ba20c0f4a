"""One way to name runs and actions, of etcd and of the service."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest

from etcd_actions import open_actions_client
from etcd_actions.cli.etcd_names import EtcdNameLookup
from etcd_actions.cli.local_calls import open_local_calls
from etcd_actions.cli.names import NameLookup, find_action, find_run, parse_name, with_nearest
from etcd_actions.cli.service_names import ServiceNameLookup
from etcd_actions.errors import ConfigError, DecodeError, NotFound
from etcd_actions.etcd.api import Etcd
from etcd_actions.model import Keyspace
from etcd_actions.runs.run_record import RunRecord, encode
from etcd_actions.server.front.stored_objects import StoredObjects
from tests.cli.here import taskaction

SOURCES = ("etcd", "service")


async def put_runs(etcd: Etcd, prefix: bytes) -> None:
    """Two runs with objects, of which one name begins with the other, and an expired one."""
    keys = Keyspace(prefix)
    for run, actions in (("long", ("a0", "c1", "x-a0")), ("long-x", ("a0", "c1")), ("old", ())):
        record = RunRecord(project="p", domain="d", name=run, created=datetime.now(UTC))
        await etcd.put(keys.runs + b"flyte/" + run.encode(), encode(record))
        for action in actions:
            parent = None if action == "a0" else "a0"
            key = f"flyte/{run}-{action}".encode()
            if (run, action) != ("long", "x-a0"):
                await etcd.put(prefix + key, taskaction(run, action, parent))


@asynccontextmanager
async def names_of(source: str, etcd: Etcd, prefix: bytes) -> AsyncIterator[NameLookup]:
    if source == "etcd":
        yield EtcdNameLookup(etcd, prefix, "flyte")
        return
    async with (
        open_actions_client(etcd, prefix=prefix) as client,
        open_local_calls(etcd, client) as calls,
    ):
        calls.add(StoredObjects(client, calls.streams, 30))
        yield ServiceNameLookup(calls)


@pytest.mark.parametrize("source", SOURCES)
async def test_each_form(source: str, etcd: Etcd, prefix: bytes) -> None:
    await put_runs(etcd, prefix)
    for text, action in {
        "long": "p/d/long/a0",
        "long-x": "p/d/long-x/a0",
        "long-x-a0": "p/d/long-x/a0",
        "long-x/long-x": "p/d/long-x/a0",
        "long-c1": "p/d/long/c1",
        "long-x-c1": "p/d/long-x/c1",
        "long/c1": "p/d/long/c1",
        "flyte/long-c1": "p/d/long/c1",
        "flyte/long-x-a0": "p/d/long-x/a0",
        "p/d/long": "p/d/long/a0",
        "p/d/long/c1": "p/d/long/c1",
        "old": "p/d/old/a0",
        "old/a0": "p/d/old/a0",
        "old-a0": "p/d/old/a0",
    }.items():
        async with names_of(source, etcd, prefix) as names:
            found = await find_action(names, text)
            assert found.path == action, text
            assert (await find_run(names, text)).path == action.rpartition("/")[0], text
            org = await find_action(names, f"o/{action}")
            assert (org.org, org.path) == ("o", action)


@pytest.mark.parametrize("source", SOURCES)
async def test_an_unknown_name_is_answered_with_the_nearest(
    source: str, etcd: Etcd, prefix: bytes
) -> None:
    await put_runs(etcd, prefix)
    async with names_of(source, etcd, prefix) as names:
        for text, near in {
            "lnog": "did you mean long",
            "long-xa0": "long-x-a0",
            "long/c2": "did you mean long/c1",
            "other/long-c1": "",
            "olds": "did you mean old",
        }.items():
            with pytest.raises(NotFound) as refused:
                await find_action(names, text)
            assert str(refused.value).startswith(f"{text}: there is no such run or action")
            assert near in str(refused.value)
        with pytest.raises(NotFound, match=r"^never: there is no such run or action$"):
            await find_run(names, "never")
        with pytest.raises(NotFound, match="gone: did you mean p/d/long/c1"):
            async with with_nearest(names, "q/d/long/c1"):
                raise NotFound("gone")
        # It is about another thing than the name.
        for known in ("long", "long/c1", "p/d/long/c1", "p/d/long"):
            with pytest.raises(NotFound, match=r"^no log$"):
                async with with_nearest(names, known):
                    raise NotFound("no log")


async def test_an_ambiguous_name_lists_its_candidates(etcd: Etcd, prefix: bytes) -> None:
    await put_runs(etcd, prefix)
    await etcd.put(prefix + b"other/long-c1", taskaction("long", "c1", project="q"))
    await etcd.put(prefix + b"other/long-x-c1", taskaction("long-x", "c1"))
    names = EtcdNameLookup(etcd, prefix, None)
    with pytest.raises(
        ConfigError, match="long-c1 is the name of several: give one of p/d/long/c1"
    ):
        await find_action(names, "long-c1")
    with pytest.raises(ConfigError, match="several namespaces: give one of flyte/long-x-c1, other"):
        await find_action(names, "p/d/long-x/c1")
    assert (await find_action(names, "other/long-c1")).path == "q/d/long/c1"
    # One run's action, and the name of another run.
    await etcd.put(prefix + b"flyte/a-b", taskaction("a", "b"))
    await etcd.put(prefix + b"flyte/a-b-a0", taskaction("a-b", "a0", None))
    names = EtcdNameLookup(etcd, prefix, None)
    with pytest.raises(ConfigError, match="give one of p/d/a/b, p/d/a-b"):
        await find_action(names, "a-b")
    assert (await find_run(names, "a/b")).path == "p/d/a"


async def test_a_run_without_its_root(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/r-c1", taskaction("r", "c1"))
    await etcd.put(prefix + b"flyte/r-b-c1", taskaction("r-b", "c1"))
    names = EtcdNameLookup(etcd, prefix, "flyte")
    assert (await find_run(names, "r")).path == "p/d/r"
    assert (await find_run(names, "p/d/r-b")).path == "p/d/r-b"
    with pytest.raises(NotFound):
        await find_run(names, "p/e/r")


async def test_a_value_that_cannot_be_decoded(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix + b"flyte/bad-a0", b"rubbish")
    with pytest.raises(DecodeError, match="flyte/bad-a0: JSON is malformed"):
        await find_action(EtcdNameLookup(etcd, prefix, None), "bad-a0")


@pytest.mark.parametrize("text", ["", "/", "a//b", "a/b/c/d/e/f", "a/"])
def test_no_name(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an action: give RUN"):
        parse_name(text)
