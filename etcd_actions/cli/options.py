"""Flags that come from the table of settings, and what every command gets of them."""

from __future__ import annotations

import functools
import getpass
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etcd_actions._internal.logger import get_logger
from etcd_actions.cli.first_signal import raising
from etcd_actions.cli.flags import setting_option
from etcd_actions.cli.log_output import configure_logs
from etcd_actions.config import (
    COMMON,
    SETTINGS,
    Config,
    Environment,
    File,
    Flags,
    Resolution,
    Setting,
    Source,
    resolve,
    unknown_variables,
)
from etcd_actions.config.settings import (
    ASKING,
    CONFIG,
    DATA_DIR,
    ENDPOINTS,
    LOG_FORMAT,
    LOG_LEVEL,
    PASSWORD,
    PASSWORD_FILE,
    SECRET,
    SUBMITTING,
)
from etcd_actions.errors import ConfigError, EmbeddedEtcdError

if TYPE_CHECKING:
    from etcd_actions.etcd import EtcdClient

_DEFAULT_ENDPOINT = "127.0.0.1:2379"

_log = get_logger(__name__)


class Common:
    """The settings that every command has; see :class:`~etcd_actions.config.Config`."""

    def __init__(self, config: Config) -> None:
        self.config = config

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
    def endpoints(self) -> str | None:
        """Where etcd is; None where nobody said."""
        given = self.config.endpoints
        return None if given is None else ",".join(map(str, given))

    @property
    def endpoints_to_use(self) -> str:
        """The endpoints, else the running embedded etcd's, else etcd's own default.

        The embedded etcd knows neither TLS nor users: where one is asked for it is not meant.
        Where its directory is given no other etcd is: that of another would be shown, or changed.

        Raises:
            ConfigError: The directory is given together with TLS or a user.
            EmbeddedEtcdError: No etcd runs on the directory that is given.
        """
        if self.endpoints is not None:
            return self.endpoints
        source, security = self.config.data_dir_source, self.config.security
        if source is not None and security:
            raise ConfigError(
                f"{source} is for the embedded etcd, which knows neither TLS nor users, but "
                f"{', '.join(security)} asks for them: leave one of them out"
            )
        from etcd_actions.embedded.embedded_etcd import running_endpoint  # noqa: PLC0415 (imports trio)

        embedded = None if security else running_endpoint(self.data_dir)
        if embedded is None and source is not None:
            raise EmbeddedEtcdError(
                f"{source}: no etcd runs on {self.data_dir}: start it with etcd-actions run "
                f"{DATA_DIR.flag} {shlex.quote(str(self.data_dir))}, or name another etcd with "
                f"{ENDPOINTS.flag} instead"
            )
        return embedded or _DEFAULT_ENDPOINT

    def open_etcd(
        self, default_endpoints: str | None = None
    ) -> AbstractAsyncContextManager[EtcdClient]:
        """Connect as the settings say, without endpoints to those, or to the ones in use."""
        from etcd_actions.etcd import open_connection  # noqa: PLC0415 (imports trio)

        return open_connection(self.config.connection(default_endpoints or self.endpoints_to_use))


def common_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the common flags: it is called with a :class:`Common` first."""
    return _with_config(function, COMMON)


def run_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command all flags of the table, those of ``run`` too; see :func:`common_options`."""
    running = [setting for setting in SETTINGS if not setting.for_asking]
    return _with_config(function, running)


def asking_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command the common flags, and those for asking the service."""
    return _with_config(function, ASKING)


def submitting_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command what :func:`asking_options` does, and where Flyte's SDK is."""
    return _with_config(function, SUBMITTING)


def all_options(function: Callable[..., int]) -> Callable[..., int]:
    """Give a command all flags of the table: it is called with the :class:`Resolution` first.

    Nothing is raised for what is unusable, and nobody is asked for a password.
    """
    return _with_resolution(function, SETTINGS)


def _with_config(
    function: Callable[..., int], settings: Sequence[Setting[object]]
) -> Callable[..., int]:
    @functools.wraps(function)
    def command(values: Resolution, **rest: Any) -> int:
        return function(Common(Config(values, _ask_password)), **rest)

    return _with_resolution(command, settings)


def _with_resolution(
    function: Callable[..., int], settings: Sequence[Setting[object]]
) -> Callable[..., int]:
    @functools.wraps(function)
    def command(**given: Any) -> int:
        flags = {setting.name: _text(given.pop(setting.name)) for setting in settings}
        sources: list[Source] = [Flags(flags), Environment(os.environ)]
        file = resolve([CONFIG], sources).get(CONFIG)
        unusable: list[ConfigError] = []
        if file is not None and file.value is not None:
            try:
                sources.append(File(file.value))
            except ConfigError as error:
                unusable.append(error)
        values = resolve(settings, sources, unusable)
        level, form = values.get(LOG_LEVEL), values.get(LOG_FORMAT)
        configure_logs(
            LOG_LEVEL.default_value if level is None else level.value,
            LOG_FORMAT.default_value if form is None else form.value,
        )
        for unknown in unknown_variables(os.environ):
            _log.warning("unknown_variable", name=unknown.name, did_you_mean=unknown.meant)
        for setting in SECRET:
            # What is started from here on, such as an etcd, has no business with it.
            os.environ.pop(setting.variable, None)
        return function(values, **given)

    decorated: Callable[..., int] = command
    for setting in reversed(settings):
        decorated = setting_option(setting)(decorated)
    return decorated


def _text(given: str | tuple[str, ...] | None) -> str | None:
    """What a flag says; one that may come several times gives a tuple."""
    if isinstance(given, tuple):
        return ",".join(given) if given else None
    return given


def _ask_password(name: str) -> str:
    # A stream that was closed before the start is None.
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        raise ConfigError(
            f"user {name} has no password, and there is no terminal to ask for it: give "
            f"{PASSWORD_FILE.flag} or {PASSWORD.variable}"
        )
    with raising():
        password = getpass.getpass(f"Password of etcd user {name}: ", sys.stderr)
    if not password:
        raise ConfigError(f"user {name}: the password is empty")
    return password
