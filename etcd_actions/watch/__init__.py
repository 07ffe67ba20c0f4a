"""Lists and watches a prefix of etcd without a gap, whatever its values mean."""

from etcd_actions.watch.change import Change, ChangeKind
from etcd_actions.watch.demand import Demand
from etcd_actions.watch.reflector import Reflector
from etcd_actions.watch.replica import Replica, open_replica
from etcd_actions.watch.watch_settings import ReflectorSettings, ReflectorStatistics

__all__ = [
    "Change",
    "ChangeKind",
    "Demand",
    "Reflector",
    "ReflectorSettings",
    "ReflectorStatistics",
    "Replica",
    "open_replica",
]
