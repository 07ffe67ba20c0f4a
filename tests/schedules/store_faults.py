"""What is done to etcd itself, besides to its processes: alarms, compactions, leaders, leases."""

from __future__ import annotations

from pathlib import Path

import grpc
import trio

from etcd_actions.errors import Compacted, EtcdError
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.testing import EtcdBinary
from tests.support.cluster import EtcdCluster, Member

_ACTIVATE, _DEACTIVATE, _NOSPACE = 1, 2, 1
_PATIENCE = 5.0


def plain_cluster(directory: Path, size: int, binary: EtcdBinary) -> EtcdCluster:
    """Members without encryption and users."""
    return EtcdCluster(directory, size=size, binary=binary)


async def answering_member(cluster: EtcdCluster) -> Member | None:
    """One that answers now, None where none does."""
    for member in cluster.members:
        if member.answering and await trio.to_thread.run_sync(_is_healthy, member):
            return member
    return None


def _is_healthy(member: Member) -> bool:
    try:
        return member.healthy()
    except RuntimeError:
        return False


def set_alarm(member: Member, *, active: bool) -> bool:
    """Raise or lower the alarm for want of space, as a member does; whether that was done.

    etcd takes a request for either from any client. It blocks for a second or so.
    """
    try:
        member_id = int(member.id(), 16)
    except (OSError, RuntimeError):
        return False
    action = _ACTIVATE if active else _DEACTIVATE
    request = bytes((0x08, action, 0x10)) + _varint(member_id) + bytes((0x18, _NOSPACE))
    with grpc.insecure_channel(member.endpoint) as channel:
        call = channel.unary_unary("/etcdserverpb.Maintenance/Alarm")
        try:
            call(request, timeout=2)
        except grpc.RpcError:
            return False
    return True


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*digits, number))


async def compact(etcd: Etcd, revision: int) -> bool:
    """Drop history below a revision; whether that was done."""
    if revision < 1:
        return False
    try:
        await etcd.compact(revision, physical=True)
    except Compacted:
        return False
    except EtcdError:
        # Maybe it was.
        return True
    return True


async def revoke(etcd: Etcd, key: bytes, cluster: EtcdCluster) -> bool:
    """Revoke the lease of a key, as an operator does; whether that was done."""
    try:
        found = await etcd.range(KeyRange.of_key(key))
    except EtcdError:
        return False
    if not found.kvs or not found.kvs[0].lease:
        return False
    return await operate(cluster, "lease", "revoke", f"{found.kvs[0].lease:x}")


async def move_leader(cluster: EtcdCluster) -> bool:
    """Have another member lead; whether that was done."""
    with trio.move_on_after(_PATIENCE):
        leader = await trio.to_thread.run_sync(_leader, cluster, abandon_on_cancel=True)
        others = [each for each in cluster.members if each.answering and each is not leader]
        if leader is None or not others:
            return False
        try:
            following = await trio.to_thread.run_sync(others[0].id)
        except (OSError, RuntimeError):
            return False
        return await operate(cluster, "move-leader", following, at=leader)
    return False


def _leader(cluster: EtcdCluster) -> Member | None:
    for member in cluster.members:
        try:
            if member.answering and member.metric("etcd_server_is_leader"):
                return member
        except OSError:
            continue
    return None


async def operate(cluster: EtcdCluster, *arguments: str, at: Member | None = None) -> bool:
    """Run etcdctl once; whether it succeeded."""
    endpoints = [at.endpoint] if at is not None else cluster.endpoints

    def run() -> bool:
        try:
            cluster.etcdctl("--command-timeout=2s", *arguments, endpoints=endpoints)
        except RuntimeError:
            return False
        return True

    return await trio.to_thread.run_sync(run)
