"""Users and what they may not do."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

import pytest

from etcd_actions import open_actions_client, open_etcd
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.doctor.access import missing
from etcd_actions.doctor.needs import NEEDS, Allowed, denied
from etcd_actions.errors import PermissionDenied
from etcd_actions.etcd.api import KeyRange, Permission, PermissionType
from etcd_actions.etcd.connection_settings import User
from etcd_actions.model import ActionId, Keyspace, Phase
from etcd_actions.testing import EtcdFactory, EtcdServer, OwnEtcd
from tests.cli.command import ROOT as ROOT_DIRECTORY
from tests.doctor.illness import PREFIX, diagnose
from tests.support import flyte
from tests.support.etcd_users import EtcdUsers, Kind
from tests.support.table import table

READ, WRITE, BOTH = PermissionType.READ, PermissionType.WRITE, PermissionType.READWRITE

OWN = Keyspace(PREFIX).own.decode()


@pytest.fixture
def guarded_etcd(etcd_factory: EtcdFactory) -> OwnEtcd:
    """An etcd with users whose password is their name."""
    etcd = etcd_factory(flags=["--bcrypt-cost=4"])
    on, half = KeyRange.of_prefix(PREFIX), KeyRange.of_prefix(PREFIX + b"etcd-actions/")
    own: tuple[Kind, KeyRange] = ("readwrite", KeyRange.of_prefix(OWN.encode()))
    roles: dict[str, list[tuple[Kind, KeyRange]]] = {
        "root": [],
        "reader": [("read", on), own],
        "writer": [("write", on), own],
        "actions": [("readwrite", on), own],
        "nobody": [],
        "half": [("read", on), own, ("readwrite", half)],
    }
    users = EtcdUsers([etcd.endpoint])
    for name, grants in roles.items():
        make_user(users, name, grants)
    users.enable()
    return etcd


def make_user(users: EtcdUsers, name: str, grants: Iterable[tuple[Kind, KeyRange]]) -> None:
    """A user with a role of its own name."""
    users.add(user(name))
    users.add_role(name)
    users.give(user(name), name)
    for kind, keys in grants:
        users.grant(name, kind, keys)


def user(name: str, password: str | None = None) -> User:
    return User(name=name, password=password or name)


async def test_users(guarded_etcd: OwnEtcd) -> None:
    """One etcd, many users: each lacks what its name says, and nothing is written."""
    endpoint = guarded_etcd.endpoint

    good = await diagnose(endpoint, user=user("actions"))
    assert good.ill == set()
    assert "actions" in good.one("permissions").seen

    reader = await diagnose(endpoint, user=user("reader"))
    assert reader.ill == {"write-denied", "commands-denied"}
    assert reader.one("commands-denied").seen == (
        "replay, status, signal, enqueue, abort, delete, gc, submit, run, run --executor, "
        "worker lack write"
    )
    finding = reader.one("write-denied")
    assert "user reader may not write [/registry/flyte.org/taskactions/, " in finding.seen
    assert finding.remedy == (
        "etcdctl role grant-permission --prefix=true reader readwrite "
        "'/registry/flyte.org/taskactions/'"
    )
    assert reader.code is ExitCode.ERRORS

    writer = await diagnose(endpoint, user=user("writer"))
    # The condition of the transaction is a read, which is refused too.
    assert "read-denied" in writer.ill
    assert "user writer may not read" in writer.one("read-denied").seen

    nobody = await diagnose(endpoint, user=user("nobody"))
    assert nobody.ill == {"read-denied", "write-denied", "own-keys-denied", "commands-denied"}
    assert "watch, list, get, tree, record lack read; " in nobody.one("commands-denied").seen
    assert nobody.one("own-keys-denied").remedy.endswith(f"readwrite '{OWN}'")
    assert nobody.code is ExitCode.ERRORS

    half = await diagnose(endpoint, user=user("half"))
    assert half.ill == {"write-denied", "commands-denied"}
    (low, high) = (
        half.one("write-denied").seen.removeprefix("user half may not write ").split("), ")
    )
    assert low == "[/registry/flyte.org/taskactions/, /registry/flyte.org/taskactions/etcd-actions/"
    assert high.startswith("[/registry/flyte.org/taskactions/etcd-actions0, ")

    root = await diagnose(endpoint, user=user("root"))
    assert root.ill == {"permissions-too-wide"}
    assert root.code in (ExitCode.OK, ExitCode.WARNINGS)

    wrong = await diagnose(endpoint, user=user("actions", "guessed"))
    assert wrong.ill >= {"authentication-failed"}
    finding = wrong.one("authentication-failed")
    assert "authentication failed" in finding.seen
    assert "etcdctl user passwd actions" in finding.remedy
    assert wrong.one("leader").severity == "ok"
    assert wrong.code is ExitCode.ERRORS

    without = await diagnose(endpoint)
    assert without.ill >= {"user-missing"}
    assert "ETCDCTL_USER" in without.one("user-missing").remedy

    async with open_etcd(endpoint, user=user("root")) as etcd:
        keys = await etcd.range(KeyRange(b"\0", b"\xff"))
    assert (keys.total, keys.revision) == (0, 1)


LEVELS = {"": Allowed(), "r": Allowed(read=True), "rw": Allowed(read=True, write=True)}


@pytest.mark.slow
async def test_what_commands_need(etcd_factory: EtcdFactory) -> None:
    """Each change of the client succeeds with the listed permissions, and with no fewer."""
    server = etcd_factory(flags=["--bcrypt-cost=4"])
    names = {f"{on}+{own}": (on, own) for on in LEVELS for own in LEVELS}
    users = EtcdUsers([server.endpoint])
    kinds: dict[str, Kind] = {"r": "read", "rw": "readwrite"}
    prefixes = (PREFIX, OWN.encode())
    for name in ("root", *names):
        levels = zip(prefixes, names.get(name, ("", "")), strict=True)
        wanted = [(kinds[level], KeyRange.of_prefix(prefix)) for prefix, level in levels if level]
        make_user(users, name, wanted)
    users.enable()
    async with (
        open_etcd(server.endpoint, user=user("root")) as as_root,
        open_actions_client(as_root) as root,
    ):
        for name, (on, own) in names.items():
            allowed = LEVELS[on]._replace(own_read=LEVELS[own].read, own_write=LEVELS[own].write)
            lacking = dict(denied(allowed))
            run = f"r{list(names).index(name)}"
            parent, child, waits = (
                flyte.identifier(ActionId("p", "d", run, each)) for each in ("a0", "a1", "a2")
            )
            await root.enqueue(flyte.task(ActionId("p", "d", run, "a0")))
            await root.enqueue(flyte.condition(ActionId("p", "d", run, "a2"), "a0"))
            async with (
                open_etcd(server.endpoint, user=user(name)) as etcd,
                open_actions_client(etcd) as client,
            ):
                made = flyte.task(ActionId("p", "d", run, "a1"), "a0")
                calls: dict[str, Callable[[], Awaitable[object]]] = {
                    "enqueue": partial(client.enqueue, made),
                    "status": partial(client.put_status, child, 1, flyte.status(Phase.RUNNING)),
                    "signal": partial(client.signal, waits, flyte.boolean(True), "me"),
                    "abort": partial(client.abort_action, parent, "no more", "me"),
                }
                for command, call in calls.items():
                    refused = False
                    try:
                        await call()
                    except PermissionDenied:
                        refused = True
                    assert refused == (command in lacking), (name, command)
                    if command == "enqueue" and refused:
                        await root.enqueue(made)


def test_the_page_has_the_needs_of_every_command() -> None:
    page = (ROOT_DIRECTORY / "docs" / "least-privilege.md").read_text()
    words = {"": (False, False), "read": (True, False), "readwrite": (True, True)}
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) ?\| ([^|]*)\|$", page, re.M)
    found: dict[str, Allowed] = {}
    for commands, on, own in rows:
        needed = Allowed(*(flag for x in (on, own) for flag in words[x.split(";")[0].strip(" `")]))
        found |= dict.fromkeys(re.findall(r"`([^`]+)`", commands), needed)
    assert {name: found[name] for name in NEEDS} == NEEDS


async def test_a_user_who_is_not_asked_for(shared_etcd: EtcdServer) -> None:
    diagnosis = await diagnose(shared_etcd.endpoint, user=user("actions"))
    assert diagnosis.ill == {"user-unused"}
    assert diagnosis.code in (ExitCode.OK, ExitCode.WARNINGS)


@table(
    ("permissions", "gaps"),
    [
        ([], [(b"b", b"d")]),
        ([Permission(READ, b"b", b"d")], [(b"b", b"d")]),
        ([Permission(WRITE, b"b", b"d")], []),
        ([Permission(BOTH, b"", b"\0")], []),
        ([Permission(BOTH, b"a", b"\0")], []),
        ([Permission(BOTH, b"b", b"")], [(b"b\0", b"d")]),
        ([Permission(BOTH, b"b", b"c"), Permission(WRITE, b"c", b"d")], []),
        ([Permission(BOTH, b"c", b"d"), Permission(WRITE, b"a", b"bb")], [(b"bb", b"c")]),
        ([Permission(BOTH, b"x", b"z")], [(b"b", b"d")]),
        ([Permission(BOTH, b"bx", b"by")], [(b"b", b"bx"), (b"by", b"d")]),
    ],
)
def test_what_permissions_leave_out(
    permissions: list[Permission], gaps: list[tuple[bytes, bytes]]
) -> None:
    assert missing(KeyRange(b"b", b"d"), permissions, WRITE) == gaps
