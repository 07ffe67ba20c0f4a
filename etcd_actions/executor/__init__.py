"""Runs actions on this machine, without Kubernetes."""

from etcd_actions.executor.executor import Executor
from etcd_actions.executor.executor_statistics import ExecutorStatistics
from etcd_actions.executor.image_settings import ImageSettings
from etcd_actions.executor.opening import open_executor
from etcd_actions.executor.settings import ExecutorSettings

__all__ = ["Executor", "ExecutorSettings", "ExecutorStatistics", "ImageSettings", "open_executor"]
