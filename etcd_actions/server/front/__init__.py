"""The services that the SDK calls in addition to ActionsService: runs, tasks, data, projects."""

from etcd_actions.server.front.front import FrontDoor

__all__ = ["FrontDoor"]
