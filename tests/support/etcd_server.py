"""The etcds that tests use and break."""

from __future__ import annotations

from pathlib import Path

from etcd_actions.testing import EtcdProcess as EtcdServer
from etcd_actions.testing import OwnEtcd
from etcd_actions.testing.etcd_process import best_binary

# Tests run side by side: a port on which nobody is to listen must not become another one's.
from etcd_actions.testing.etcd_server import lasting_port as free_port

__all__ = ["EtcdServer", "OwnEtcd", "find_etcd", "free_port"]


def find_etcd() -> Path:
    """The best etcd program on this machine."""
    return best_binary().path
