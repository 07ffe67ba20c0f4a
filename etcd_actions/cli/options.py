"""The settings of a command as its flags, and the connection that they describe."""

from __future__ import annotations

import functools
import getpass
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from etcd_actions._internal.logger import get_logger
from etcd_actions.cli.first_signal import signals_raise
from etcd_actions.cli.flags import setting_option
from etcd_actions.cli.log_output import configure_logs
from etcd_actions.config import (
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
    CONFIG,
    DATA_DIR,
    ENDPOINTS,
    LOG_FORMAT,
    LOG_LEVEL,
    NAMESPACE,
    PASSWORD,
    PASSWORD_FILE,
    PREFIX,
    SECRET,
)
from etcd_actions.errors import ConfigError, EmbeddedEtcdError, Unavailable, leaf_errors

if TYPE_CHECKING:
    from etcd_actions.etcd import EtcdClient

_DEFAULT_ENDPOINT = "127.0.0.1:2379"

_log = get_logger(__name__)


class CommonOptions:
    """The settings of a command, and the connection to the etcd that they name.

    Attributes:
        config: All settings.
        prefix: The part of keys before ``<namespace>/<name>``.
        namespace: The only namespace; None for all.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.prefix = config[PREFIX]
        self.namespace = config[NAMESPACE]

    @property
    def qualify_runs(self) -> bool:
        """Whether tables show runs with their project and domain.

        If each project and domain has a namespace of its own, several runs can have one name.
        """
        return self.config.namespace_template is not None

    @property
    def endpoints_to_use(self) -> str:
        """The endpoints of the settings, else of the running embedded etcd, else etcd's default.

        The embedded etcd has neither TLS nor users, so it is not used if TLS or a user is given. If
        its directory is given, no other etcd is used, so that no command changes the wrong one.

        Raises:
            ConfigError: The directory is given together with TLS or a user.
            EmbeddedEtcdError: No etcd runs on the directory that is given.
        """
        if self.config.endpoints is not None:
            return self.config.endpoints
        directory, security = self.config[DATA_DIR], self.config.security
        given = self.config.is_given(DATA_DIR)
        source = self.config.source(DATA_DIR)
        if given and security:
            raise ConfigError(
                f"{source} is for the embedded etcd, which has neither TLS nor users, but "
                f"{', '.join(security)} needs them: leave one of them out"
            )
        from etcd_actions.embedded.data_directory import running_endpoint  # noqa: PLC0415 (imports trio)

        embedded = None if security else running_endpoint(directory)
        if embedded is None and given:
            raise EmbeddedEtcdError(
                f"{source}: no etcd runs on {directory}: start it with etcd-actions run "
                f"{DATA_DIR.flag} {shlex.quote(str(directory))}, or name another etcd with "
                f"{ENDPOINTS.flag} instead"
            )
        return embedded or _DEFAULT_ENDPOINT

    @asynccontextmanager
    async def open_etcd(self, endpoints: str | None = None) -> AsyncIterator[EtcdClient]:
        """Connect to etcd.

        Args:
            endpoints: Used if the settings name none; None for :attr:`endpoints_to_use`.

        Raises:
            ConfigError: Settings are unusable together.
            EmbeddedEtcdError: No etcd runs on the directory that is given.
            Unavailable: The body ended with it; if the quorum is lost, the message says that.
        """
        from etcd_actions.etcd import open_connection  # noqa: PLC0415 (imports trio)

        settings = self.config.connection(endpoints or self.endpoints_to_use)
        try:
            async with open_connection(settings) as etcd:
                yield etcd
        except Exception as error:
            first = next(leaf_errors(error))
            if not isinstance(first, Unavailable):
                raise
            from etcd_actions.etcd.quorum import explained  # noqa: PLC0415 (imports trio)

            named = await explained(first, settings)
            if named is first:
                raise
            raise named from error


def with_settings(
    settings: Sequence[Setting[object]],
) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Add the flags of settings to a command, whose first argument is a :class:`CommonOptions`."""

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        @functools.wraps(function)
        def command(values: Resolution, **rest: Any) -> int:
            return function(CommonOptions(Config(values, _prompt_password)), **rest)

        return with_resolution(command, settings)

    return decorate


def with_resolution(
    function: Callable[..., int], settings: Sequence[Setting[object]] = SETTINGS
) -> Callable[..., int]:
    """Add the flags of settings to a command, whose first argument is a :class:`Resolution`.

    It also configures the logs. Unusable values are in the resolution and raise nothing, and there
    is no prompt for a password.
    """

    @functools.wraps(function)
    def command(**given: Any) -> int:
        values = _resolved({each.name: given.pop(each.name) for each in settings}, settings)
        level, form = values.get(LOG_LEVEL), values.get(LOG_FORMAT)
        configure_logs(
            LOG_LEVEL.default_value if level is None else level.value,
            LOG_FORMAT.default_value if form is None else form.value,
        )
        for unknown in unknown_variables(os.environ):
            _log.warning("unknown_variable", name=unknown.name, did_you_mean=unknown.meant)
        for setting in SECRET:
            # Processes that a command starts, such as an etcd, must not inherit it.
            os.environ.pop(setting.variable, None)
        return function(values, **given)

    decorated: Callable[..., int] = command
    for setting in reversed(settings):
        decorated = setting_option(setting)(decorated)
    return decorated


def quiet_options(given: Mapping[str, Any]) -> CommonOptions:
    """The settings among the parameters of a command, for completion: no logs, and no prompt."""
    settings = [each for each in SETTINGS if each.name in given]
    configure_logs("critical", LOG_FORMAT.default_value)
    return CommonOptions(Config(_resolved(given, settings), None))


def _resolved(given: Mapping[str, Any], settings: Sequence[Setting[object]]) -> Resolution:
    flags = {each.name: _text(given[each.name]) for each in settings}
    sources: list[Source] = [Flags(flags), Environment(os.environ)]
    file = resolve([CONFIG], sources).get(CONFIG)
    errors: list[ConfigError] = []
    if file is not None and file.value is not None:
        try:
            sources.append(File(file.value))
        except ConfigError as error:
            errors.append(error)
    return resolve(settings, sources, errors)


def _text(given: str | tuple[str, ...] | None) -> str | None:
    """The text of a flag; one that may be repeated has a tuple."""
    if isinstance(given, tuple):
        return ",".join(given) if given else None
    return given


def _prompt_password(name: str) -> str:
    # A stream that was closed before the start is None.
    if not all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr)):
        raise ConfigError(
            f"user {name} has no password, and there is no terminal to prompt for it: give "
            f"{PASSWORD_FILE.flag} or {PASSWORD.variable}"
        )
    with signals_raise():
        password = getpass.getpass(f"Password of etcd user {name}: ", sys.stderr)
    if not password:
        raise ConfigError(f"user {name}: the password is empty")
    return password
