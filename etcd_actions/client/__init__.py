"""The public ActionsClient: every method of Flyte's, on bare etcd."""

from etcd_actions.client.client import ActionsClient
from etcd_actions.client.opening import open_actions_client

__all__ = ["ActionsClient", "open_actions_client"]
