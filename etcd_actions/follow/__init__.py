"""Handles each change of a key: notes it in the index, and queues it for each receiver."""

from etcd_actions.follow.family import FamilyReader
from etcd_actions.follow.handler import Handler
from etcd_actions.follow.index import Index
from etcd_actions.follow.set_aside import SetAside

__all__ = ["FamilyReader", "Handler", "Index", "SetAside"]
