"""Flyte TaskActions handled directly in etcd: list, watch, route, tell, mark."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcd_actions.actions.status import ActionStatus
    from etcd_actions.actions.stored_action import StoredTaskAction
    from etcd_actions.client import ActionsClient, open_actions_client
    from etcd_actions.dead_letters import DeadLetter
    from etcd_actions.etcd import Tls, User, open_etcd
    from etcd_actions.follow.subscriptions import SnapshotEnd, Subscription
    from etcd_actions.model import ActionId, ActionUpdate, Phase, TaskAction
    from etcd_actions.pipeline.processor import Processor, open_processor
    from etcd_actions.pipeline.processor_settings import ProcessorSettings, ProcessorStatistics
    from etcd_actions.run_service import NullRunService, RunService, open_run_service

__version__ = "0.1.0"

__all__ = [
    "ActionId",
    "ActionStatus",
    "ActionUpdate",
    "ActionsClient",
    "DeadLetter",
    "NullRunService",
    "Phase",
    "Processor",
    "ProcessorSettings",
    "ProcessorStatistics",
    "RunService",
    "SnapshotEnd",
    "StoredTaskAction",
    "Subscription",
    "TaskAction",
    "Tls",
    "User",
    "__version__",
    "open_actions_client",
    "open_etcd",
    "open_processor",
    "open_run_service",
]

# Imported when first used: the command line must get to work, and to its secrets, at once.
_HOMES = {
    "ActionId": "model",
    "ActionStatus": "actions.status",
    "ActionUpdate": "model",
    "ActionsClient": "client",
    "DeadLetter": "dead_letters",
    "NullRunService": "run_service",
    "Phase": "model",
    "Processor": "pipeline.processor",
    "ProcessorSettings": "pipeline.processor_settings",
    "ProcessorStatistics": "pipeline.processor_settings",
    "RunService": "run_service",
    "SnapshotEnd": "follow.subscriptions",
    "StoredTaskAction": "actions.stored_action",
    "Subscription": "follow.subscriptions",
    "TaskAction": "model",
    "Tls": "etcd",
    "User": "etcd",
    "open_actions_client": "client",
    "open_etcd": "etcd",
    "open_processor": "pipeline.processor",
    "open_run_service": "run_service",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
