"""Finds the user who has the other end of a connection from this machine.

Both ends of a connection to the loopback address are sockets of this machine. Linux reports the
user of a socket: by sock_diag(7), or in /proc/net/tcp if that is not allowed. A socket that its
process has closed has no user. It is shown with user 0, and counts as unknown.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeAlias

from etcd_actions.errors import ConfigError
from etcd_actions.web.bind import plain_address

Address: TypeAlias = tuple[str, int]

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_ALL_STATES = 0xFFFFFFFF
# ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT: a process may still have it.
_STATES = frozenset({1, 4, 5, 8})
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI")
_SOCKET_ID = struct.Struct("!HH16s16s")
_NO_INTERFACE_ANY_COOKIE = struct.pack("=III", 0, _ALL_STATES, _ALL_STATES)
_ANSWER = struct.Struct("=BBBB48sIIIII")


class Peers:
    """Finds the user of a connection's other end; :func:`open_peers` makes it."""

    def __init__(self, netlink: socket.socket | None) -> None:
        self._netlink = netlink

    def uid(self, peer: Address, here: Address) -> int | None:
        """The user whose process has the socket ``peer`` that is connected to ``here``.

        None if the kernel reports none: the socket is on another machine, or closed.
        """
        if self._netlink is not None:
            return _query(self._netlink, peer, here)
        return _search(peer, here)


@contextmanager
def open_peers(flag: str) -> Iterator[Peers]:
    """Choose the way in which the kernel reports users.

    Raises:
        ConfigError: There is none.
    """
    with _netlink() as netlink:
        peers = Peers(netlink)
        if not _has_peer_info(peers):
            peers = Peers(None)
            if not _has_peer_info(peers):
                raise ConfigError(
                    f"{flag}: this system ({sys.platform}) does not report which user a connection "
                    "comes from: give --listen-users any to let every user of this machine in"
                )
        yield peers


@contextmanager
def _netlink() -> Iterator[socket.socket | None]:
    family = getattr(socket, "AF_NETLINK", None)
    if family is None:
        yield None
        return
    try:
        netlink = socket.socket(family, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    except OSError:
        yield None
        return
    with netlink:
        netlink.setblocking(False)
        yield netlink


def _has_peer_info(peers: Peers) -> bool:
    """Whether it finds this process at the other end of a connection to itself."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = server.getsockname()
        with socket.create_connection(here) as client:
            accepted, _ = server.accept()
            with accepted:
                return peers.uid(client.getsockname(), here) == os.geteuid()


def _query(netlink: socket.socket, peer: Address, here: Address) -> int | None:
    """Query exactly one socket. The kernel responds within the call."""
    family, peer_bytes, here_bytes = _bytes(peer[0], here[0])
    body = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 0, 0, _ALL_STATES)
        + _SOCKET_ID.pack(peer[1], here[1], peer_bytes, here_bytes)
        + _NO_INTERFACE_ANY_COOKIE
    )
    header = _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 0, 0)
    try:
        netlink.send(header + body)
        answer = netlink.recv(4096)
    except OSError:
        return None
    _, kind, _, _, _ = _HEADER.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY or len(answer) < _HEADER.size + _ANSWER.size:
        return None
    found = _ANSWER.unpack_from(answer, _HEADER.size)
    state, socket_id, uid, inode = found[1], found[4], found[8], found[9]
    sport, dport, _, _ = _SOCKET_ID.unpack_from(socket_id)
    # Without a connection the kernel returns a listener.
    if state not in _STATES or not inode or (sport, dport) != (peer[1], here[1]):
        return None
    return int(uid)


def _search(peer: Address, here: Address) -> int | None:
    """Search the tables of all connections."""
    ends = {
        (_hex(family, peer_bytes, peer[1]), _hex(family, here_bytes, here[1]))
        for family, peer_bytes, here_bytes in _forms(peer[0], here[0])
    }
    for name in ("tcp", "tcp6"):
        try:
            # The kernel generates it: reading does not block.
            lines = Path("/proc/net", name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if (fields[1], fields[2]) in ends:
                state, uid, inode = int(fields[3], 16), int(fields[7]), int(fields[9])
                return uid if state in _STATES and inode else None
    return None


def _bytes(peer: str, here: str) -> tuple[int, bytes, bytes]:
    """The family of a connection, and both addresses in the kernel's 16 bytes."""
    ends = plain_address(peer), plain_address(here)
    if isinstance(ends[0], IPv4Address) and isinstance(ends[1], IPv4Address):
        return socket.AF_INET, ends[0].packed.ljust(16, b"\0"), ends[1].packed.ljust(16, b"\0")
    peer_bytes, here_bytes = (b"\0" * 16 if end is None else end.packed for end in ends)
    return socket.AF_INET6, peer_bytes, here_bytes


def _forms(peer: str, here: str) -> Iterator[tuple[int, bytes, bytes]]:
    """The same, and for IPv4 also the form of an IPv6 socket."""
    family, peer_bytes, here_bytes = _bytes(peer, here)
    yield family, peer_bytes, here_bytes
    if family == socket.AF_INET:
        mapped = b"\0" * 10 + b"\xff\xff"
        yield socket.AF_INET6, mapped + peer_bytes[:4], mapped + here_bytes[:4]


def _hex(family: int, address: bytes, port: int) -> str:
    """As in /proc/net: words of 32 bits in the machine's order."""
    words = 1 if family == socket.AF_INET else 4
    found = struct.unpack(f"={words}I", address[: 4 * words])
    return "".join(f"{word:08X}" for word in found) + f":{port:04X}"
