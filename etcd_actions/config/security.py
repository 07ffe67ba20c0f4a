"""TLS and the user: settings that must match each other, and the files that they name."""

from __future__ import annotations

import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from etcd_actions._internal.logger import get_logger
from etcd_actions.config import settings
from etcd_actions.config.resolution import Resolution, Value
from etcd_actions.config.setting import Setting
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.connection_settings import Tls, User
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.password_file import read_password_file
from etcd_actions.etcd.tls import read_pem_file, ssl_context

PromptPassword: TypeAlias = Callable[[str], str]
"""Prompts for the password of a user; raises :class:`ConfigError` without a terminal."""

_SWITCHES: tuple[Setting[object], ...] = (
    settings.CACERT,
    settings.CERT,
    settings.KEY,
    settings.TLS_SERVER_NAME,
)

_log = get_logger(__name__)


def tls_sources(values: Resolution) -> list[str]:
    """The flags and variables that switch TLS on."""
    sources = [values[each].source for each in _SWITCHES if values[each].given is not None]
    plain = values[settings.INSECURE_TRANSPORT]
    return sources if plain.value else [*sources, plain.source]


def make_tls(values: Resolution, endpoints: Sequence[Endpoint]) -> Tls | None:
    """The TLS settings; None if no setting switches TLS on.

    An ``https://`` endpoint alone needs none: the system's authorities apply.
    """
    skip_verify = values[settings.INSECURE_SKIP_TLS_VERIFY].value
    unverified = skip_verify and any(endpoint.encrypted for endpoint in endpoints)
    if not tls_sources(values) and not unverified:
        return None
    return Tls(
        ca=values[settings.CACERT].value,
        cert=values[settings.CERT].value,
        key=values[settings.KEY].value,
        server_name=values[settings.TLS_SERVER_NAME].value,
        skip_verify=skip_verify,
    )


def check_tls(values: Resolution) -> None:
    """Check that the settings match each other, and that the files are in PEM.

    Raises:
        ConfigError: They do not; the message names flags or variables, and the file.
    """
    for one, other in ((settings.CERT, settings.KEY), (settings.KEY, settings.CERT)):
        if values[one].given is not None and values[other].given is None:
            raise ConfigError(
                f"{values[one].source} is given without {other.flag} ({other.variable}): "
                "give both or none"
            )
    switches = tls_sources(values)
    where = values[settings.ENDPOINTS]
    for endpoint in where.value or () if switches else ():
        if endpoint.encrypted is False:
            raise ConfigError(
                f"{where.source}: http://{endpoint} is not encrypted, but {switches[0]} switches "
                "TLS on: write https://, or leave one of them out"
            )
    files = [values[each] for each in (settings.CACERT, settings.CERT, settings.KEY)]
    given = [each for each in files if each.given is not None]
    for each in given:
        check_pem(Path(str(each.value)), each.source)
    tls = make_tls(values, where.value or ())
    if tls is not None:
        try:
            ssl_context(tls)
        except ConfigError as error:
            raise ConfigError(f"{', '.join(each.source for each in given)}: {error}") from None


def make_user(values: Resolution, prompt: PromptPassword | None) -> User | None:
    """The user of etcd; None without one, or if a prompt is needed and ``prompt`` is None.

    Raises:
        ConfigError: The settings do not match each other, or there is no usable password.
    """
    user, apart = values[settings.USER], _separate_password(values)
    if user.value is None:
        if apart is not None:
            raise ConfigError(
                f"{apart.source} is given without a user: give {settings.USER.flag} "
                f"({settings.USER.variable}) too"
            )
        return None
    # With a separate password all of the text is the name, as in etcdctl.
    name, colon, password = user.value.partition(":") if apart is None else (user.value, "", "")
    if not name:
        raise ConfigError(f"{user.source}: the name is empty: give NAME or NAME:PASSWORD")
    if colon:
        if not password:
            raise ConfigError(f"{user.source}: the password after the colon is empty")
        return User(name=name, password=password)
    if apart is None:
        return None if prompt is None else User(name=name, password=prompt(name))
    if isinstance(apart.value, Path):
        return _user_with_file(name, apart.value, apart.source)
    return User(name=name, password=str(apart.value))


def unused_password(values: Resolution) -> Value[object] | None:
    """The password, or its file, that a source of lower rank overrides."""
    given = _passwords(values)
    return given[1] if len(given) > 1 and given[0].rank < given[1].rank else None


def needs_password(values: Resolution) -> bool:
    """Whether there is a user without a password, so that a prompt is needed."""
    user = values[settings.USER].value
    return user is not None and ":" not in user and not _passwords(values)


def _separate_password(values: Resolution) -> Value[object] | None:
    given = _passwords(values)
    if len(given) > 1 and given[0].rank == given[1].rank:
        raise ConfigError(f"{given[0].source} and {given[1].source}: give one of them")
    return given[0] if given else None


def _passwords(values: Resolution) -> list[Value[object]]:
    both: list[Value[object] | None] = [
        values.get(settings.PASSWORD),
        values.get(settings.PASSWORD_FILE),
    ]
    given = [each for each in both if each is not None and each.given is not None]
    return sorted(given, key=lambda each: each.rank)


def _user_with_file(name: str, file: Path, source: str) -> User:
    try:
        status = file.stat()
    except OSError as error:
        raise ConfigError(f"{source}: {file}: {error.strerror}") from None
    try:
        password = read_password_file(file, pipes=True)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    if not stat.S_ISREG(status.st_mode):
        # A pipe, such as a shell's <(command), can be read once.
        return User(name=name, password=password)
    if status.st_mode & stat.S_IROTH:
        _log.warning("password_file_readable_by_others", file=str(file), advice=f"chmod o= {file}")
    return User(name=name, password_file=file)


def check_pem(file: Path, source: str) -> None:
    """Check that a file can be read, and is in PEM.

    A pipe is refused, since each new connection reads the file again.

    Raises:
        ConfigError: The file is unusable; the message begins with ``source``.
    """
    try:
        read_pem_file(file)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
