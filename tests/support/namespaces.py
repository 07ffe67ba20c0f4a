"""Machines that are network namespaces: a bridge in one more namespace connects them.

The names belong to this process, so several processes can have networks. Only root can make them.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.support.network_lock import network_lock

_HOSTS = range(1, 200)
_INTERFACE = "eth0"


class Namespace:
    """A network namespace that is connected to the bridge; :meth:`Network.add` makes it.

    Attributes:
        name: Its name for the program ``ip``.
        address: Its address.
    """

    def __init__(self, network: Network, port: str, name: str, address: str) -> None:
        self._network = network
        self._port = port
        self.name = name
        self.address = address

    def command(self, *command: str | Path) -> list[str | Path]:
        """The command line that runs a command in it, as the process that is started."""
        return ["ip", "netns", "exec", self.name, *command]

    def run(self, *command: str) -> None:
        """Run a command in it to its end."""
        run(*map(str, self.command(*command)))

    def disconnect(self) -> None:
        """Take its link down: packets in both directions are lost from now on, without an error."""
        self._network.switch("link", "set", self._port, "down")

    def connect(self) -> None:
        """Take its link up again."""
        self._network.switch("link", "set", self._port, "up")

    def pids(self) -> list[int]:
        """The processes in it."""
        return [int(each) for each in run("ip", "netns", "pids", self.name).split()]

    def kill_all(self) -> None:
        """Kill all processes in it, as a power failure would, until there are none."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


class Network:
    """Namespaces with addresses in one subnet; :func:`open_network` makes it."""

    def __init__(self, subnet: str) -> None:
        self._subnet = subnet
        self._stack = ExitStack()
        self._switch = f"ea{os.getpid()}-switch"
        self._ports = 0

    def add(self, name: str) -> Namespace:
        """A namespace, until the network is closed."""
        self._ports += 1
        port, address = f"port{self._ports}", f"{self._subnet}.{self._ports}"
        added = Namespace(self, port, f"ea{os.getpid()}-{name}", address)
        self._create(added.name)
        self._link(port, "name", _INTERFACE, "netns", added.name)
        added.run("ip", "address", "add", f"{address}/24", "dev", _INTERFACE)
        added.run("ip", "link", "set", _INTERFACE, "up")
        return added

    def switch(self, *command: str) -> None:
        """Run ``ip`` in the namespace of the bridge."""
        run("ip", "-netns", self._switch, *command)

    @contextmanager
    def opened(self, host: str = "") -> Iterator[Network]:
        """Have the bridge while the context is open.

        Args:
            host: An interface of this machine's own, which has the subnet's address 254.
        """
        with self._stack:
            self._create(self._switch)
            self.switch("link", "add", "name", "br0", "type", "bridge")
            self.switch("link", "set", "br0", "up")
            if host:
                self._link("host", "name", host)
                # It goes with its other end, but only some time after the namespace.
                self._stack.callback(run, "ip", "link", "delete", host)
                # One address, all at once: IPv6 would add another one later.
                run("ip", "link", "set", host, "addrgenmode", "none")
                run("ip", "address", "add", f"{self._subnet}.254/24", "dev", host)
                run("ip", "link", "set", host, "up")
            yield self

    def _create(self, name: str) -> None:
        run("ip", "netns", "add", name)
        self._stack.callback(run, "ip", "netns", "delete", name)
        run("ip", "-netns", name, "link", "set", "lo", "up")

    def _link(self, port: str, *end: str) -> None:
        """Connect a new interface with a new port of the bridge."""
        veth = ("ip", "link", "add", *end, "type", "veth")
        run(*veth, "peer", "name", port, "netns", self._switch)
        self.switch("link", "set", port, "up")
        self.switch("link", "set", port, "master", "br0")


@contextmanager
def open_network() -> Iterator[tuple[Network, str]]:
    """A network that this machine is in, too; with this machine's address in it.

    Raises:
        RuntimeError: It cannot be made; see :func:`why_not`.
    """
    with ExitStack() as stack:
        for number in _HOSTS:
            network = Network(f"10.98.{number}")
            try:
                with network_lock(exclusive=True):
                    # The name of the interface reserves the subnet.
                    stack.enter_context(network.opened(f"eahost{number}"))
            except RuntimeError as error:
                if "File exists" not in str(error):
                    raise
                continue
            try:
                yield network, f"10.98.{number}.254"
            finally:
                with network_lock(exclusive=True):
                    stack.close()
            return
        raise RuntimeError("all subnets are in use: are there interfaces eahost* of ended tests?")


def why_not() -> str:
    """Why no network namespace can be made here; empty if one can."""
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    name = f"ea{os.getpid()}-probe"
    try:
        run("ip", "netns", "add", name)
    except (OSError, RuntimeError) as error:
        return f"no network namespace can be made here: {error}"
    try:
        veth = ("type", "veth", "peer", "name", "end1")
        run("ip", "-netns", name, "link", "add", "name", "end0", *veth)
        run("ip", "-netns", name, "link", "add", "name", "br0", "type", "bridge")
    except RuntimeError as error:
        return f"no bridge can be made here: {error}"
    finally:
        run("ip", "netns", "delete", name)
    return ""


def run(*command: str) -> str:
    """Run a command to its end; returns its output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
