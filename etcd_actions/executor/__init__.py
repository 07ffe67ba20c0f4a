"""Runs actions without Kubernetes: on this machine, or where a launcher starts them."""

from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.start_errors import NotStarted
from etcd_actions.executor.executor import Executor
from etcd_actions.executor.executor_settings import ExecutorSettings, ImageSettings, RaySettings
from etcd_actions.executor.executor_statistics import ExecutorStatistics
from etcd_actions.executor.launchers.launcher import (
    Launcher,
    LauncherUnavailable,
    Look,
    SharedLauncher,
    State,
)
from etcd_actions.executor.offers import Offer
from etcd_actions.executor.open_executor import open_executor

__all__ = [
    "AttemptDirectory",
    "Command",
    "Executor",
    "ExecutorSettings",
    "ExecutorStatistics",
    "ImageSettings",
    "Launcher",
    "LauncherUnavailable",
    "Look",
    "NotStarted",
    "Offer",
    "RaySettings",
    "SharedLauncher",
    "State",
    "open_executor",
]
