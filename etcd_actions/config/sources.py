"""Where settings are given: flags, then the environment; the first that has one counts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from etcd_actions.config.settings import SETTINGS, Setting
from etcd_actions.errors import ConfigError

_TESTS = "ETCD_ACTIONS_TEST_"

# etcdctl's own, which mean nothing here.
_OTHERS = frozenset(
    "ETCDCTL_" + name
    for name in (
        "API",
        "DEBUG",
        "DISCOVERY_SRV",
        "DISCOVERY_SRV_NAME",
        "HEX",
        "INSECURE_DISCOVERY",
        "WRITE_OUT",
    )
)


@dataclass(frozen=True)
class Given:
    """A text that somebody gave.

    Attributes:
        text: The text, which may be secret.
        source: The flag or the variable, which errors must name.
    """

    text: str = field(repr=False)
    source: str


class Source(Protocol):
    """A place where settings are given."""

    def find(self, setting: Setting[object], /) -> Given | None:
        """What is given for a setting, None for nothing.

        Raises:
            ConfigError: It is given, but empty.
        """
        ...


class Flags:
    """The command line; the texts by the names of the settings, None where not given."""

    def __init__(self, texts: Mapping[str, str | None]) -> None:
        self._texts = texts

    def find(self, setting: Setting[object], /) -> Given | None:
        """What the flag says; an empty one is an error."""
        text = self._texts.get(setting.name)
        if text == "":
            raise ConfigError(f"{setting.flag}: it is empty: give a value, or leave it out")
        return None if text is None else Given(text, setting.flag)


class Environment:
    """Environment variables; an empty one counts as unset."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = variables

    def find(self, setting: Setting[object], /) -> Given | None:
        """What the variable says."""
        text = self._variables.get(setting.variable)
        return Given(text, setting.variable) if text else None


class UnknownVariable(NamedTuple):
    """A variable that looks like one of ours, and the one that was meant, perhaps."""

    name: str
    meant: str | None


def unknown_variables(variables: Mapping[str, str]) -> Iterator[UnknownVariable]:
    """The variables that would be ignored without a word, as a typing error is."""
    known = [setting.variable for setting in SETTINGS]
    for name in sorted(variables):
        # Those of etcd_actions.testing are for test runs, which start commands too.
        ours = name.startswith(("ETCD_ACTIONS_", "ETCDCTL_")) and not name.startswith(_TESTS)
        if ours and name not in known and name not in _OTHERS:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
            yield UnknownVariable(name, near[0] if near else None)
