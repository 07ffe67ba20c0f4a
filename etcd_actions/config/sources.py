"""The sources of settings: flags, the environment, a file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from etcd_actions._internal.named_files import read_named_file, text_of
from etcd_actions._internal.quoting import clipped, quoted
from etcd_actions.config.setting import Setting
from etcd_actions.config.settings import SETTINGS
from etcd_actions.errors import ConfigError

_TESTS = "ETCD_ACTIONS_TEST_"
_NOT_IN_FILES = ("config", "password")
_MOST_BYTES = 64 * 1024
_MOST_DOTS = 2_000
_KINDS: Mapping[type[object], str] = {
    dict: "a table",
    list: "a list of other things",
    int: "a number of thousands of digits",
    datetime: "a time",
    date: "a date",
    time: "a time",
}

# The variables of etcdctl that have no setting here.
_OTHERS = re.compile(
    "ETCDCTL_(API|DEBUG|DISCOVERY_SRV|DISCOVERY_SRV_NAME|HEX|INSECURE_DISCOVERY|WRITE_OUT)"
)


@dataclass(frozen=True)
class Given:
    """A text, which may be secret, and the flag or variable that errors name as its source."""

    text: str = field(repr=False)
    source: str


class Source(Protocol):
    """A source of settings."""

    def find(self, setting: Setting[object], /) -> Given | None:
        """The text of a setting, None if it has none.

        Raises:
            ConfigError: The text is empty, or no text at all.
        """


class Flags:
    """The command line: texts by the names of settings, None for a flag that is not given."""

    def __init__(self, texts: Mapping[str, str | None]) -> None:
        self._texts = texts

    def find(self, setting: Setting[object], /) -> Given | None:
        """The text of the flag; an empty one is an error."""
        text = self._texts.get(setting.name)
        if text == "":
            raise ConfigError(f"{setting.flag}: it is empty: give a value, or leave it out")
        return None if text is None else Given(text, setting.flag)


class Environment:
    """Environment variables; an empty one counts as unset."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def find(self, setting: Setting[object], /) -> Given | None:
        """The text of the variable."""
        text = self._variables.get(setting.variable)
        return Given(text, setting.variable) if text else None


class File:
    """A TOML file: settings by their names, without tables.

    A list is a text with commas. A password is rejected: it has a file of its own.

    Raises:
        ConfigError: The file cannot be read, or one of its keys is not a setting.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._values = _toml(text_of(read_named_file(path, _MOST_BYTES, pipes=True)))
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"{path}: not valid TOML: {clipped(str(error), 200)}") from None
        known = [setting.name for setting in SETTINGS if setting.name not in _NOT_IN_FILES]
        for key in self._values:
            if key not in known:
                raise ConfigError(f"{path}: {_named(key)}: {_remedy(key, known)}")

    def find(self, setting: Setting[object], /) -> Given | None:
        """The text of the key; an empty one is an error."""
        value = self._values.get(setting.name)
        if value is None:
            return None
        source = f"{self._path}: {setting.name}"
        text = _as_text(value)
        if text is None:
            raise ConfigError(
                f"{source}: {_KINDS.get(type(value), 'this')} is neither a text, a number, true "
                "nor false, and no list of texts"
            )
        if not text:
            raise ConfigError(f"{source}: it is empty: give a value, or leave it out")
        if setting.name == "user" and ":" in text:
            raise ConfigError(f"{source}: a password does not belong here: use password_file")
        return Given(text, source)


def _toml(text: str) -> dict[str, Any]:
    import tomllib  # noqa: PLC0415 (where there is a file)

    for number, line in enumerate(text.splitlines(), 1):
        # The time that the parser takes is quadratic in the parts of a key.
        if line.count(".") > _MOST_DOTS:
            raise ValueError(f"line {number} has more than {_MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{_line_with('[{', text)} is nested too deeply") from None
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        # Python converts at most some thousand digits.
        raise ValueError(f"{_line_with('0123456789', text)} has too long a number") from None


def _line_with(characters: str, text: str) -> str:
    """The line that has the most of some characters."""
    lines = [sum(map(line.count, characters)) for line in text.splitlines()]
    return f"line {lines.index(max(lines)) + 1}"


def _named(key: str) -> str:
    """A key, in quotes if TOML needs them."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) else quoted(key)


def _remedy(key: str, known: Sequence[str]) -> str:
    if key == "password":
        return "a password does not belong here: use password_file"
    near = _nearest(key[:80].replace("-", "_"), known, 0.6)
    return f"there is no such setting{f': did you mean {near}?' if near else ''}"


def _nearest(word: str, known: Iterable[str], cutoff: float) -> str | None:
    # Imported for a mistake only.
    import difflib  # noqa: PLC0415

    return next(iter(difflib.get_close_matches(word, known, n=1, cutoff=cutoff)), None)


def _as_text(value: object) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value
    if isinstance(value, int | float):
        try:
            return f"{value}"
        except ValueError:
            # A hexadecimal number can have too many digits for a decimal text.
            return None
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ",".join(value)
    return None


class UnknownVariable(NamedTuple):
    """A variable with our prefix that is not a setting, and the nearest one."""

    name: str
    meant: str | None


def unknown_variables(variables: Mapping[str, str]) -> Iterator[UnknownVariable]:
    """The variables with our prefix that are not settings, such as misspelt ones."""
    known = [setting.variable for setting in SETTINGS]
    bare = {_bare(name): name for name in known}
    for name in sorted(variables):
        # Variables of etcd_actions.testing are for test runs, which start commands too.
        ours = name.startswith(("ETCD_ACTIONS_", "ETCDCTL_")) and not name.startswith(_TESTS)
        if ours and name not in known and not _OTHERS.fullmatch(name):
            near = _nearest(_bare(name)[:80], bare, 0.8)
            yield UnknownVariable(name, bare[near] if near else None)


def _bare(name: str) -> str:
    return name.removeprefix("ETCD_ACTIONS_").removeprefix("ETCDCTL_")
