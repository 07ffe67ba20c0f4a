"""Users and what they may not do."""

from __future__ import annotations

import pytest

from etcd_actions import open_etcd
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.doctor.access import missing
from etcd_actions.etcd.api import KeyRange, Permission, PermissionType
from etcd_actions.etcd.connection_settings import User
from etcd_actions.model import Keyspace
from etcd_actions.testing import EtcdFactory, EtcdServer, OwnEtcd
from tests.doctor.illness import PREFIX, diagnose

READ, WRITE, BOTH = PermissionType.READ, PermissionType.WRITE, PermissionType.READWRITE

OWN = Keyspace(PREFIX).side.decode()


@pytest.fixture
def guarded_etcd(etcd_factory: EtcdFactory) -> OwnEtcd:
    """An etcd with users whose password is their name."""
    etcd = etcd_factory(flags=["--bcrypt-cost=4"])
    roles = {
        "root": None,
        "reader": "read",
        "writer": "write",
        "actions": "readwrite",
        "nobody": None,
    }
    for name, permission in roles.items():
        etcd.etcdctl("user", "add", f"{name}:{name}")
        etcd.etcdctl("role", "add", name)
        etcd.etcdctl("user", "grant-role", name, name)
        if permission is not None:
            etcd.etcdctl(
                "role", "grant-permission", "--prefix=true", name, permission, PREFIX.decode()
            )
            etcd.etcdctl("role", "grant-permission", "--prefix=true", name, "readwrite", OWN)
    etcd.etcdctl("user", "add", "half:half")
    etcd.etcdctl("role", "add", "half")
    etcd.etcdctl("user", "grant-role", "half", "half")
    etcd.etcdctl("role", "grant-permission", "--prefix=true", "half", "read", PREFIX.decode())
    etcd.etcdctl("role", "grant-permission", "--prefix=true", "half", "readwrite", OWN)
    half = f"{PREFIX.decode()}etcd-actions/"
    etcd.etcdctl("role", "grant-permission", "--prefix=true", "half", "readwrite", half)
    etcd.etcdctl("auth", "enable")
    return etcd


def user(name: str, password: str | None = None) -> User:
    return User(name=name, password=password or name)


async def test_users(guarded_etcd: OwnEtcd) -> None:
    """One etcd, many users: each lacks what its name says, and nothing is written."""
    endpoint = guarded_etcd.endpoint

    good = await diagnose(endpoint, user=user("actions"))
    assert good.ill == set()
    assert "actions" in good.one("permissions").seen

    reader = await diagnose(endpoint, user=user("reader"))
    assert reader.ill == {"write-denied"}
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
    assert nobody.ill == {"read-denied", "write-denied", "own-keys-denied"}
    assert nobody.one("own-keys-denied").remedy.endswith(f"readwrite '{OWN}'")
    assert nobody.code is ExitCode.ERRORS

    half = await diagnose(endpoint, user=user("half"))
    assert half.ill == {"write-denied"}
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


async def test_a_user_who_is_not_asked_for(shared_etcd: EtcdServer) -> None:
    diagnosis = await diagnose(shared_etcd.endpoint, user=user("actions"))
    assert diagnosis.ill == {"user-unused"}
    assert diagnosis.code in (ExitCode.OK, ExitCode.WARNINGS)


@pytest.mark.parametrize(
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
