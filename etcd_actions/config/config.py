"""The settings of a command, checked as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from etcd_actions.config.resolution import Resolution
from etcd_actions.config.security import AskPassword, asking_for_tls, check_tls, make_tls, make_user
from etcd_actions.config.settings import (
    CODEC,
    COMMAND_TIMEOUT,
    DATA_DIR,
    DIAL_TIMEOUT,
    ENDPOINTS,
    KEEPALIVE_TIME,
    KEEPALIVE_TIMEOUT,
    NAMESPACE,
    NAMESPACE_TEMPLATE,
    PREFIX,
    TRANSPORT,
    USER,
    CodecName,
    Setting,
)
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.connection_settings import ConnectionSettings, User
from etcd_actions.etcd.endpoints import Endpoint, parse_endpoints
from etcd_actions.model import NamespaceTemplate

T = TypeVar("T")


class Config:
    """What the sources come to; ``config[GRACE]`` is the value of any setting.

    Files that are named are looked into, so that a wrong one is found at the start.

    Args:
        values: What the sources say.
        ask_password: Asks for the password of a user who has none. With None nobody is
            asked, and the user is left out.

    Raises:
        ConfigError: Something is unusable; the message names its flags and variables.
    """

    def __init__(self, values: Resolution, ask_password: AskPassword | None) -> None:
        if values.errors:
            raise values.errors[0]
        self._values = values
        _check_data_dir(values)
        check_tls(values)
        self._user = make_user(values, ask_password)

    def __getitem__(self, setting: Setting[T]) -> T:
        return self._values[setting].value

    def is_given(self, setting: Setting[object]) -> bool:
        """Whether somebody gave a value, so that the default does not count."""
        return self._values[setting].given is not None

    @property
    def endpoints(self) -> tuple[Endpoint, ...] | None:
        """Where etcd listens; None where nobody said."""
        return self[ENDPOINTS]

    @property
    def prefix(self) -> bytes:
        """What comes before ``<namespace>/<name>`` in the keys, with its last slash."""
        return self[PREFIX]

    @property
    def namespace(self) -> str | None:
        """The only namespace wanted; all when None."""
        return self[NAMESPACE]

    @property
    def namespace_template(self) -> NamespaceTemplate | None:
        """What names the namespace of each action; None where all are in one.

        One namespace that is asked for by its name counts more.
        """
        return None if self.namespace is not None else self[NAMESPACE_TEMPLATE]

    def check_one_namespace(self) -> None:
        """Refuse two answers to the question where actions are to be created.

        Raises:
            ConfigError: There are two.
        """
        one, each = self._values[NAMESPACE], self._values[NAMESPACE_TEMPLATE]
        if one.given is not None and each.given is not None:
            raise ConfigError(
                f"{one.source} keeps all actions in one namespace, {each.source} each project and "
                "domain in its own: leave one of them out"
            )

    @property
    def codec(self) -> CodecName:
        """How objects that are created are stored."""
        return self[CODEC]

    @property
    def data_dir(self) -> Path | None:
        """The embedded etcd's directory; None for the default one."""
        return self[DATA_DIR]

    @property
    def data_dir_source(self) -> str | None:
        """Which flag, variable or key says what the directory is; None where nobody does."""
        directory = self._values[DATA_DIR]
        return None if directory.given is None else directory.source

    @property
    def user(self) -> User | None:
        """Who to be for etcd; None for nobody."""
        return self._user

    @property
    def security(self) -> list[str]:
        """The flags and variables that ask for TLS or name a user."""
        user = self._values[USER]
        return asking_for_tls(self._values) + ([] if user.given is None else [user.source])

    def connection(self, default_endpoints: str) -> ConnectionSettings:
        """How to connect to the endpoints, or to ``default_endpoints`` where there are none.

        Raises:
            ConfigError: ``default_endpoints`` cannot be read.
        """
        endpoints = self.endpoints or parse_endpoints(default_endpoints)
        return ConnectionSettings(
            endpoints=endpoints,
            transport=self[TRANSPORT],
            tls=make_tls(self._values, endpoints),
            user=self._user,
            dial_timeout=self[DIAL_TIMEOUT],
            request_timeout=self[COMMAND_TIMEOUT],
            keepalive_time=self[KEEPALIVE_TIME],
            keepalive_timeout=self[KEEPALIVE_TIMEOUT],
        )


def _check_data_dir(values: Resolution) -> None:
    where, directory = values[ENDPOINTS], values[DATA_DIR]
    # Endpoints that are said closer by, as a flag beside a variable, are for this command alone.
    if where.given is None or directory.given is None or where.rank < directory.rank:
        return
    raise ConfigError(
        f"{directory.source} is for the embedded etcd, but {where.source} names another one: "
        "leave one of them out"
    )
