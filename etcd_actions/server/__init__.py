"""Flyte's ActionsService over the wire, on an `~etcd_actions.client.ActionsClient`."""

from etcd_actions.server.server import ActionsServer, ServerStatistics, open_actions_server
from etcd_actions.server.service_settings import ServerSettings

__all__ = ["ActionsServer", "ServerSettings", "ServerStatistics", "open_actions_server"]
