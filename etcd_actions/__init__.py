"""Flyte's actions, directly in etcd: enqueue, watch, report, record. docs/api.md lists the API."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from etcd_actions import errors
    from etcd_actions.actions.abort import AbortResult
    from etcd_actions.actions.enqueue import Enqueued
    from etcd_actions.actions.listing import Listing
    from etcd_actions.actions.status import ActionStatus
    from etcd_actions.actions.stored_action import StoredAction
    from etcd_actions.client import ActionsClient, open_actions_client
    from etcd_actions.dead_letters import DeadLetter
    from etcd_actions.errors import ActionError, EtcdActionsError, EtcdError, NotFound
    from etcd_actions.etcd import Tls, User, open_etcd
    from etcd_actions.follow.subscriptions import SnapshotEnd, Subscription
    from etcd_actions.model import (
        ActionId,
        ActionObject,
        ActionUpdate,
        ErrorState,
        Incarnation,
        Phase,
        RunId,
    )
    from etcd_actions.pipeline.watching_settings import WatchingSettings
    from etcd_actions.run_service import RunService, open_run_service
    from etcd_actions.storage.claims import Claims

__version__ = "0.1.0"

__all__ = [
    "AbortResult",
    "ActionError",
    "ActionId",
    "ActionObject",
    "ActionStatus",
    "ActionUpdate",
    "ActionsClient",
    "Claims",
    "DeadLetter",
    "Enqueued",
    "ErrorState",
    "EtcdActionsError",
    "EtcdError",
    "Incarnation",
    "Listing",
    "NotFound",
    "Phase",
    "RunId",
    "RunService",
    "SnapshotEnd",
    "StoredAction",
    "Subscription",
    "Tls",
    "User",
    "WatchingSettings",
    "__version__",
    "errors",
    "open_actions_client",
    "open_etcd",
    "open_run_service",
]

# Imported on first use: the command line must start, and hide its secrets, at once.
_HOMES = {
    "AbortResult": "actions.abort",
    "ActionError": "errors",
    "ActionId": "model",
    "ActionObject": "model",
    "ActionStatus": "actions.status",
    "ActionUpdate": "model",
    "ActionsClient": "client",
    "Claims": "storage.claims",
    "DeadLetter": "dead_letters",
    "Enqueued": "actions.enqueue",
    "ErrorState": "model",
    "EtcdActionsError": "errors",
    "EtcdError": "errors",
    "Incarnation": "model",
    "Listing": "actions.listing",
    "NotFound": "errors",
    "Phase": "model",
    "RunId": "model",
    "RunService": "run_service",
    "SnapshotEnd": "follow.subscriptions",
    "StoredAction": "actions.stored_action",
    "Subscription": "follow.subscriptions",
    "Tls": "etcd",
    "User": "etcd",
    "WatchingSettings": "pipeline.watching_settings",
    "open_actions_client": "client",
    "open_etcd": "etcd",
    "open_run_service": "run_service",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module(f"{__name__}.errors")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
