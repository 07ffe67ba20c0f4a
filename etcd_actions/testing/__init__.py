"""An etcd for tests: a real one as a pytest fixture, one to break, or one in memory.

A test suite loads the fixtures with one line in its ``conftest.py``::

    pytest_plugins = ["etcd_actions.testing"]

and its tests take the fixtures ``etcd`` (an :class:`EtcdServer` that all tests share),
``etcd_prefix`` (a key prefix of the test's own on it) and ``etcd_factory`` (makes an
:class:`OwnEtcd` of the test's own, to stop, kill, suspend, wipe and restore). The option
``--etcd`` selects the etcd.

Tests without a network and without waiting use a :class:`MemoryStore`, which needs no fixture.

The plugin is loaded on demand only. An entry point would load it into every test run in an
environment with this package, and its fixtures and its option have common names.

PYTEST_DONT_REWRITE: there are no assertions for pytest to explain. A ``conftest.py`` may import a
class from here before pytest loads the plugin, and pytest would warn about that.
"""

from __future__ import annotations

from etcd_actions.testing.container import DEFAULT_IMAGE, EtcdContainer
from etcd_actions.testing.etcd_process import EtcdBinary, EtcdProcess
from etcd_actions.testing.etcd_server import EtcdFactory, EtcdServer, OwnEtcd, free_port
from etcd_actions.testing.memory import (
    Call,
    Faults,
    Held,
    MemoryClient,
    MemoryStore,
    Order,
    any_call,
    any_write,
)
from etcd_actions.testing.proxy import Direction, Proxy, flipping, open_proxy, saying_goaway

pytest_plugins = ("etcd_actions.testing.plugin",)

__all__ = [
    "DEFAULT_IMAGE",
    "Call",
    "Direction",
    "EtcdBinary",
    "EtcdContainer",
    "EtcdFactory",
    "EtcdProcess",
    "EtcdServer",
    "Faults",
    "Held",
    "MemoryClient",
    "MemoryStore",
    "Order",
    "OwnEtcd",
    "Proxy",
    "any_call",
    "any_write",
    "flipping",
    "free_port",
    "open_proxy",
    "pytest_plugins",
    "saying_goaway",
]
