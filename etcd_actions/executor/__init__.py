"""Runs actions on this machine, without Kubernetes."""

from etcd_actions.executor.executor import Executor, ExecutorStatistics
from etcd_actions.executor.executor_settings import ExecutorSettings, ImageSettings
from etcd_actions.executor.open_executor import open_executor

__all__ = ["Executor", "ExecutorSettings", "ExecutorStatistics", "ImageSettings", "open_executor"]
