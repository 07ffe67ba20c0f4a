"""Flyte TaskActions handled directly in etcd: list, watch, route, tell, mark."""

from etcd_actions.etcd import open_etcd
from etcd_actions.model import ActionId, ActionUpdate, Phase, TaskAction
from etcd_actions.processor import (
    Processor,
    ProcessorSettings,
    ProcessorStatistics,
    open_processor,
)
from etcd_actions.run_service import NullRunService, RunService
from etcd_actions.subscriptions import Subscription

__version__ = "0.1.0"

__all__ = [
    "ActionId",
    "ActionUpdate",
    "NullRunService",
    "Phase",
    "Processor",
    "ProcessorSettings",
    "ProcessorStatistics",
    "RunService",
    "Subscription",
    "TaskAction",
    "__version__",
    "open_etcd",
    "open_processor",
]
