"""The public ActionsClient, with the methods of Flyte's class of that name."""

from etcd_actions.client.client import ActionsClient
from etcd_actions.client.opening import open_actions_client

__all__ = ["ActionsClient", "open_actions_client"]
