"""Runs actions on this machine, without Kubernetes."""

from etcd_actions.executor.executor import Executor
from etcd_actions.executor.executor_settings import ExecutorSettings, ImageSettings
from etcd_actions.executor.executor_statistics import ExecutorStatistics
from etcd_actions.executor.offers import Offer
from etcd_actions.executor.open_executor import open_executor

__all__ = [
    "Executor",
    "ExecutorSettings",
    "ExecutorStatistics",
    "ImageSettings",
    "Offer",
    "open_executor",
]
