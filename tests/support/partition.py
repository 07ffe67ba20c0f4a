"""A cluster whose members are on a network of their own, so that the ways between them can be cut.

Each member has a network namespace, with an address that only the others reach, through a bridge
in one more namespace. Clients reach a member by its loopback interface: a relay listens on the
same port here, and connects there. So a member can be cut off from its peers alone.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path

import trio

from tests.support.cluster import EtcdCluster, Member, ServerTls
from tests.support.namespaces import Namespace, Network

_CLONE_NEWNET = 0x40000000
_BYTES = 65536
_PEERS = "10.97.31"
"""A network of its own: nothing outside the namespaces has a way to it."""


class PartedCluster(EtcdCluster):
    """Three members, each in a network namespace. See the module's text.

    Args:
        directory: Where data and logs go.
        tls: What they show to clients; None for plain connections.
        flags: More flags for each member.
    """

    def __init__(
        self, directory: Path, *, tls: ServerTls | None = None, flags: Sequence[str] = ()
    ) -> None:
        super().__init__(directory, size=3, tls=tls, flags=flags)
        self._namespaces: dict[str, Namespace] = {}

    @contextmanager
    def network(self) -> Iterator[None]:
        """Make the namespaces, and take them away again."""
        with Network(_PEERS).opened() as network:
            self._namespaces = {each.name: network.add(each.name) for each in self.members}
            yield

    def part(self, member: Member) -> None:
        """What it and its peers send each other is lost from now on, without an error."""
        self._namespaces[member.name].disconnect()

    def join(self, member: Member) -> None:
        """It reaches its peers again."""
        self._namespaces[member.name].connect()

    @asynccontextmanager
    async def relayed(self) -> AsyncIterator[None]:
        """Let clients here reach the members, and the members' metrics."""
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            for member in self.members:
                there = os.open(f"/run/netns/{self._namespaces[member.name].name}", os.O_RDONLY)
                stack.callback(os.close, there)
                for port in (member.port, member.metrics_port):
                    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
                    relay = partial(_relay, there, port)
                    nursery.start_soon(partial(trio.serve_listeners, relay, listeners))
            yield
            nursery.cancel_scope.cancel("the test is over")

    def _command(self, member: Member) -> list[str | Path]:
        command = []
        for argument in super()._command(member):
            changed = str(argument)
            for each in self.members:
                address = self._namespaces[each.name].address
                changed = changed.replace(
                    f"127.0.0.1:{each.peer_port}", f"{address}:{each.peer_port}"
                )
            command.append(changed)
        return self._namespaces[member.name].command(*command)


async def _relay(there: int, port: int, near: trio.SocketStream) -> None:
    """Forward one connection to a port of a namespace, until one side ends."""
    with suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError):
        made = await trio.to_thread.run_sync(_socket_in, there)
        made.setblocking(False)
        # A socket stays in the namespace that it was made in.
        with trio.socket.from_stdlib_socket(made) as far_socket:
            await far_socket.connect(("127.0.0.1", port))
            far = trio.SocketStream(far_socket)
            async with near, far, trio.open_nursery() as nursery:
                nursery.start_soon(_pump, near, far, nursery.cancel_scope)
                nursery.start_soon(_pump, far, near, nursery.cancel_scope)


async def _pump(source: trio.SocketStream, sink: trio.SocketStream, end: trio.CancelScope) -> None:
    try:
        while data := await source.receive_some(_BYTES):
            await sink.send_all(data)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        end.cancel("one side has ended")


def _socket_in(there: int) -> socket.socket:
    """A socket of another network namespace; this thread is in it for a moment."""
    libc = ctypes.CDLL(None, use_errno=True)
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        _enter(libc, there)
        try:
            return socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            _enter(libc, here)
    finally:
        os.close(here)


def _enter(libc: ctypes.CDLL, namespace: int) -> None:
    if libc.setns(namespace, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "the network namespace cannot be entered")
