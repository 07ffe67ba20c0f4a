"""Where a process finds its etcd and its keys: flags first, then the environment.

An empty environment variable counts as unset; an empty flag is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from etcd_actions.errors import ConfigError

ENV_ENDPOINTS = "ETCDCTL_ENDPOINTS"
ENV_NAMESPACE = "ETCD_ACTIONS_NAMESPACE"
ENV_PREFIX = "ETCD_ACTIONS_PREFIX"


class Setting(NamedTuple):
    """A text that somebody gave, and where: the flag or the variable that errors must name."""

    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """What flags and environment come to.

    Attributes:
        endpoints: Where etcd listens, unread; None where nobody said.
        prefix: What comes before ``<namespace>/<name>`` in the keys, with its last slash.
        namespace: The only namespace wanted; all when None.
        data_dir: The embedded etcd's directory; None for the default one.
    """

    endpoints: Setting | None
    prefix: bytes
    namespace: str | None
    data_dir: Path | None


def load_config(
    environ: Mapping[str, str],
    *,
    default_prefix: bytes,
    endpoints: str | None = None,
    prefix: str | None = None,
    namespace: str | None = None,
    data_dir: Path | None = None,
) -> Config:
    """Merge flags, None where they were not given, with the environment.

    Raises:
        ConfigError: A value is unusable; the message names its flag or variable.
    """
    where = _choose("--endpoints", endpoints, ENV_ENDPOINTS, environ)
    if where is not None and data_dir is not None:
        raise ConfigError(
            f"--data-dir is for the embedded etcd, but {where.source} names another one: "
            "leave one of them out"
        )
    below = _choose("--prefix", prefix, ENV_PREFIX, environ)
    only = _choose("--namespace", namespace, ENV_NAMESPACE, environ)
    return Config(
        endpoints=where,
        prefix=default_prefix if below is None else _prefix(below),
        namespace=None if only is None else _namespace(only),
        data_dir=data_dir,
    )


def _choose(
    flag: str, given: str | None, variable: str, environ: Mapping[str, str]
) -> Setting | None:
    if given is not None:
        return Setting(given, flag)
    text = environ.get(variable, "")
    return Setting(text, variable) if text else None


def _prefix(setting: Setting) -> bytes:
    if not setting.text.strip("/"):
        raise ConfigError(
            f"{setting.source}: {setting.text!r} would be every key of the store: "
            "give a prefix such as /registry/flyte.org/taskactions/"
        )
    return _utf8(setting).rstrip(b"/") + b"/"


def _namespace(setting: Setting) -> str:
    if not setting.text or "/" in setting.text:
        raise ConfigError(
            f"{setting.source}: {setting.text!r} is no namespace: give a name without a slash, "
            "or leave it out for all namespaces"
        )
    return _utf8(setting).decode()


def _utf8(setting: Setting) -> bytes:
    try:
        return setting.text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{setting.source}: {setting.text!r} is not UTF-8") from None
