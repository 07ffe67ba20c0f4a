"""The settings of a command, checked together."""

from __future__ import annotations

import random
from typing import TypeVar

from etcd_actions.config import settings
from etcd_actions.config.resolution import Resolution
from etcd_actions.config.security import (
    PromptPassword,
    check_pem,
    check_tls,
    make_tls,
    make_user,
    tls_sources,
)
from etcd_actions.config.setting import Setting
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.bearer_token import read_bearer_token
from etcd_actions.etcd.connection_settings import ConnectionSettings, Tls
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.model import NamespaceTemplate

T = TypeVar("T")

_OF_ETCD: tuple[Setting[object], ...] = (
    settings.ENDPOINTS,
    settings.DATA_DIR,
    settings.TRANSPORT,
)


class Config:
    """The values of a :class:`Resolution`; ``config[GRACE]`` is the value of a setting.

    The files that the settings name are read once, so that a wrong one is found at the start.

    Args:
        values: The values.
        prompt_password: Returns the password of a user without one. None: no prompt, and such a
            user counts as not given.

    Attributes:
        user: The user of etcd, None without one.

    Raises:
        ConfigError: A value is unusable, or two contradict each other; the message names their
            flags and variables.
    """

    def __init__(self, values: Resolution, prompt_password: PromptPassword | None) -> None:
        if values.errors:
            raise values.errors[0]
        self._values = values
        where, directory = values[settings.ENDPOINTS], values[settings.DATA_DIR]
        # Endpoints of a nearer source, such as a flag next to a variable, are for this command.
        if where.given and directory.given and where.rank >= directory.rank:
            raise ConfigError(
                f"{directory.source} is for the embedded etcd, but {where.source} names another "
                "one: leave one of them out"
            )
        check_tls(values)
        self.user = make_user(values, prompt_password)

    def __getitem__(self, setting: Setting[T]) -> T:
        return self._values[setting].value

    def is_given(self, setting: Setting[object]) -> bool:
        """Whether a source has a value, so that the default does not apply."""
        return self._values[setting].given is not None

    def source(self, setting: Setting[object]) -> str:
        """The flag, variable or key that has the value, or ``default``."""
        return self._values[setting].source

    @property
    def endpoints(self) -> str | None:
        """The addresses of etcd, with commas between them; None if no source has them."""
        given = self[settings.ENDPOINTS]
        return None if given is None else ",".join(map(str, given))

    @property
    def namespace_template(self) -> NamespaceTemplate | None:
        """The names of namespaces by project and domain; None if one namespace is named."""
        return None if self[settings.NAMESPACE] is not None else self[settings.NAMESPACE_TEMPLATE]

    def check_one_namespace(self) -> None:
        """Check that the namespace of new actions is unambiguous.

        Raises:
            ConfigError: Both a namespace and a template are given.
        """
        if self.is_given(settings.NAMESPACE) and self.is_given(settings.NAMESPACE_TEMPLATE):
            raise ConfigError(
                f"{self.source(settings.NAMESPACE)} keeps all actions in one namespace, "
                f"{self.source(settings.NAMESPACE_TEMPLATE)} each project and domain in its own: "
                "leave one of them out"
            )

    @property
    def security(self) -> list[str]:
        """The flags and variables that switch TLS on or name a user."""
        user = [self.source(settings.USER)] if self.is_given(settings.USER) else []
        return tls_sources(self._values) + user

    def service_connection(self) -> ConnectionSettings:
        """The connection of a worker to the service, in place of etcd.

        Several services are in a random order, so that the first ones of workers differ.

        Raises:
            ConfigError: Settings of etcd are given, too, there is no usable token, or only some of
                the services are encrypted.
        """
        services = self[settings.SERVICE]
        assert services is not None
        flag = self.source(settings.SERVICE)
        given = [self.source(each) for each in _OF_ETCD if self.is_given(each)] + self.security
        if given:
            raise ConfigError(
                f"{flag} is used in place of etcd, but {', '.join(given)} is for etcd: leave one "
                "of them out"
            )
        token_file = self[settings.SERVICE_TOKEN_FILE]
        if token_file is None:
            raise ConfigError(
                f"{flag} needs {settings.SERVICE_TOKEN_FILE.flag}: a file with a token that has "
                "role=worker in the --token-file of the service"
            )
        read_bearer_token(token_file, self.source(settings.SERVICE_TOKEN_FILE))
        cacert = self[settings.SERVICE_CACERT]
        if cacert is not None:
            check_pem(cacert, self.source(settings.SERVICE_CACERT))
        elif len({bool(each.encrypted) for each in services}) > 1:
            raise ConfigError(
                f"{flag}: only some addresses have https://, and each of them gets the token: "
                "write it before all of them"
            )
        return ConnectionSettings(
            endpoints=tuple(random.sample(services, len(services))),
            tls=None if cacert is None else Tls(ca=cacert),
            token_file=token_file,
            dial_timeout=self[settings.DIAL_TIMEOUT],
            request_timeout=self[settings.COMMAND_TIMEOUT],
            keepalive_time=self[settings.KEEPALIVE_TIME],
            keepalive_timeout=self[settings.KEEPALIVE_TIMEOUT],
        )

    def connection(self, default_endpoints: str) -> ConnectionSettings:
        """The connection to the endpoints, or to ``default_endpoints`` if none are given.

        Raises:
            ConfigError: ``default_endpoints`` cannot be parsed.
        """
        endpoints = self[settings.ENDPOINTS] or parse_endpoints(default_endpoints)
        return ConnectionSettings(
            endpoints=endpoints,
            transport=self[settings.TRANSPORT],
            tls=make_tls(self._values, endpoints),
            user=self.user,
            dial_timeout=self[settings.DIAL_TIMEOUT],
            request_timeout=self[settings.COMMAND_TIMEOUT],
            keepalive_time=self[settings.KEEPALIVE_TIME],
            keepalive_timeout=self[settings.KEEPALIVE_TIMEOUT],
        )
