"""List and watch a prefix of etcd without a gap: what changed, never what it means."""

from etcd_actions.watch.change import Change, ChangeKind
from etcd_actions.watch.reflector import Reflector
from etcd_actions.watch.replica import Replica, follow
from etcd_actions.watch.watch_settings import ReflectorSettings, ReflectorStatistics

__all__ = [
    "Change",
    "ChangeKind",
    "Reflector",
    "ReflectorSettings",
    "ReflectorStatistics",
    "Replica",
    "follow",
]
