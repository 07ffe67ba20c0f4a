"""What the SDK's own entry points ask for besides actions: runs, tasks, data, projects."""

from etcd_actions.server.front.front import FrontDoor

__all__ = ["FrontDoor"]
