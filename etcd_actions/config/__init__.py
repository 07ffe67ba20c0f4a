"""Settings: the value of a flag, else of a variable, else of a file, else the default.

:mod:`~etcd_actions.config.settings` is the table of all settings.
"""

from etcd_actions.config.config import Config
from etcd_actions.config.resolution import Resolution, Value, resolve
from etcd_actions.config.setting import Setting
from etcd_actions.config.settings import COMMON, SETTINGS
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
