"""From a change of a key to those who are notified: the index, and what handles changes."""

from etcd_actions.follow.family import FamilyReader
from etcd_actions.follow.handler import Handler
from etcd_actions.follow.index import Index
from etcd_actions.follow.set_aside import SetAside

__all__ = ["FamilyReader", "Handler", "Index", "SetAside"]
