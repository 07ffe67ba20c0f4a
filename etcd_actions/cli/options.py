"""Flags that every command has, and what they mean."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from etcd_actions.cli.logs import FORMATS, LEVELS, configure_logs
from etcd_actions.config import Config, Setting, load_config
from etcd_actions.errors import ConfigError
from etcd_actions.etcd import Etcd, open_etcd
from etcd_actions.etcd.embedded import running_endpoint
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.model import DEFAULT_KEY_PREFIX

_DEFAULT_ENDPOINT = "127.0.0.1:2379"


@dataclass(frozen=True, kw_only=True)
class Common:
    """The settings that every command has; see :class:`~etcd_actions.config.Config`.

    ``endpoints`` are checked, and None where nobody named any.
    """

    config: Config
    endpoints: str | None

    @property
    def prefix(self) -> bytes:
        """What comes before ``<namespace>/<name>`` in the keys."""
        return self.config.prefix

    @property
    def namespace(self) -> str | None:
        """The only namespace wanted; all when None."""
        return self.config.namespace

    @property
    def data_dir(self) -> Path | None:
        """The embedded etcd's directory; None for the default one."""
        return self.config.data_dir

    @property
    def endpoints_to_use(self) -> str:
        """The endpoints, else the running embedded etcd's, else etcd's own default."""
        return self.endpoints or running_endpoint(self.data_dir) or _DEFAULT_ENDPOINT

    def open_etcd(self, endpoints: str | None = None) -> AbstractAsyncContextManager[Etcd]:
        """Connect as the settings say, by default to :attr:`endpoints_to_use`."""
        return open_etcd(endpoints or self.endpoints_to_use)


def common_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the common flags: it is called with a :class:`Common` first."""

    @click.option(
        "--endpoints",
        metavar="HOST:PORT,...",
        help="Where etcd listens. [env: ETCDCTL_ENDPOINTS]",
    )
    @click.option(
        "--namespace", metavar="NAME", help="Only this namespace. [env: ETCD_ACTIONS_NAMESPACE]"
    )
    @click.option(
        "--prefix",
        metavar="KEY",
        help="What the keys begin with, before the namespace. "
        f"[env: ETCD_ACTIONS_PREFIX; default: {DEFAULT_KEY_PREFIX.decode()}]",
    )
    @click.option(
        "--data-dir",
        metavar="DIRECTORY",
        type=click.Path(file_okay=False, path_type=Path),
        help="The embedded etcd's directory. [env: ETCD_ACTIONS_DATA_DIR]",
    )
    @click.option("--log-level", type=click.Choice(LEVELS), default="info", show_default=True)
    @click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="auto",
        show_default=True,
        help="Logs go to stderr; auto is console on a terminal, else json.",
    )
    @functools.wraps(function)
    def command(
        *,
        endpoints: str | None,
        namespace: str | None,
        prefix: str | None,
        data_dir: Path | None,
        log_level: str,
        log_format: str,
        **rest: Any,
    ) -> int:
        config = load_config(
            os.environ,
            default_prefix=DEFAULT_KEY_PREFIX,
            endpoints=endpoints,
            namespace=namespace,
            prefix=prefix,
            data_dir=data_dir,
        )
        checked = None if config.endpoints is None else _check(config.endpoints)
        configure_logs(log_level, log_format)
        return function(Common(config=config, endpoints=checked), **rest)

    return command


def _check(endpoints: Setting) -> str:
    try:
        parse_endpoints(endpoints.text)
    except ConfigError as error:
        raise ConfigError(f"{endpoints.source}: {error}") from None
    return endpoints.text
