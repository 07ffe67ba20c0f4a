"""The permissions that each command needs, as in docs/least-privilege.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from etcd_actions.doctor.findings import Kind

DENIED = Kind.note(
    "commands-denied",
    "These commands fail for this user; a user that only reads actions needs none of them.",
    "etcdctl role grant-permission --prefix=true <role> readwrite '<prefix>' && etcdctl role "
    "grant-permission --prefix=true <role> readwrite '<own>'; or give the commands --service, "
    "which needs no etcd user",
)


class Allowed(NamedTuple):
    """Permissions on the prefix of actions, and on the prefix of this package's other keys."""

    read: bool = False
    write: bool = False
    own_read: bool = False
    own_write: bool = False


NEEDS: dict[str, Allowed] = {
    command: needed
    for commands, needed in (
        ("watch, list, get, tree, record", Allowed(read=True)),
        ("logs, io, dead-letters list", Allowed(read=True, own_read=True)),
        ("dead-letters retry, dead-letters delete", Allowed(own_read=True, own_write=True)),
        ("replay, status, signal", Allowed(read=True, write=True)),
        ("enqueue", Allowed(read=True, write=True, own_read=True)),
        ("abort, delete, gc, submit, run, run --executor, worker", Allowed(*[True] * 4)),
    )
    for command in commands.split(", ")
}
"""The permissions of each command that uses etcd itself; with ``--service`` it needs none."""


def denied(allowed: Allowed) -> Iterator[tuple[str, str]]:
    """The commands that lack a permission, and the permissions that each lacks."""
    names = ("read", "write", "read on our own keys", "write on our own keys")
    for command, needed in NEEDS.items():
        pairs = zip(names, needed, allowed, strict=True)
        if lacking := [name for name, need, has in pairs if need and not has]:
            yield command, ", ".join(lacking)


def describe(allowed: Allowed) -> str:
    """The denied commands, grouped by the missing permissions; empty if none is denied."""
    by_reason: dict[str, list[str]] = {}
    for command, lacking in denied(allowed):
        by_reason.setdefault(lacking, []).append(command)
    return "; ".join(f"{', '.join(names)} lack {why}" for why, names in by_reason.items())
