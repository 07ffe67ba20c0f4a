"""Settings: from flags, else from the environment, else from a file, else their defaults.

:mod:`~etcd_actions.config.settings` has the table of them all.
"""

from etcd_actions.config.config import Config
from etcd_actions.config.resolution import Resolution, Value, resolve
from etcd_actions.config.settings import COMMON, SETTINGS, Setting
from etcd_actions.config.sources import Environment, File, Flags, Source, unknown_variables

__all__ = [
    "COMMON",
    "SETTINGS",
    "Config",
    "Environment",
    "File",
    "Flags",
    "Resolution",
    "Setting",
    "Source",
    "Value",
    "resolve",
    "unknown_variables",
]
