"""The kinds of values that settings have: how help names one, and its parser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from etcd_actions.config import values

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Name = TypeVar("Name", bound=str)

HIDDEN = "(hidden)"
"""Shown in the place of a secret."""


@dataclass(frozen=True)
class Kind(Generic[T_co]):
    """A kind of values.

    Attributes:
        metavar: The placeholder of a value in help.
        parse: Returns the value of a text; raises :class:`ValueError`.
        is_list: Whether the flag may be repeated; commas join the texts.
        show: Returns the part of a text that may be shown.
    """

    metavar: str
    parse: Callable[[str], T_co]
    is_list: bool = False
    show: Callable[[str], str] = str


def choice(*names: Name) -> Kind[Name]:
    """One of some words."""
    return Kind("|".join(names), values.one_of(*names))


def without_password(text: str) -> str:
    """``name:password`` with the password hidden."""
    name, _, password = text.partition(":")
    return f"{name}:{HIDDEN}" if password else text


BIND = Kind("HOST:PORT|none", values.bind)
BOOL = Kind("BOOL", values.boolean)
COUNT = Kind("N", values.count)
CPUS = Kind("N", values.cpus)
DIRECTORY = Kind("DIRECTORY", values.directory)
DURATION = Kind("DURATION", values.positive_duration)
DURATION_OR_ZERO = Kind("DURATION", values.duration)
FILE = Kind("FILE", values.file)
LABELS = Kind("KEY=VALUE", values.labels, is_list=True)
NAME = Kind("NAME", values.utf8)
NAMES = Kind("NAME,...", values.names, is_list=True)
NAMESPACE_TEMPLATE = Kind(
    "TEXT", values.namespace_template, show=lambda text: str(values.namespace_template(text))
)
NUMBER = Kind("N", values.number)
PASSWORD = Kind("PASSWORD", values.utf8, show=lambda _: HIDDEN)
PREFIX = Kind("KEY", values.prefix, show=lambda text: values.prefix(text).decode())
SECONDS = Kind("DURATION", values.seconds)
SERVER = Kind("HOST:PORT", values.service)
SERVERS = Kind("HOST:PORT,...", values.services, is_list=True)
SIZE = Kind("SIZE", values.size)
TEXT = Kind("TEXT", values.utf8)
URL = Kind("URL", values.url)
USER = Kind("NAME[:PASSWORD]", values.utf8, show=without_password)
