"""The value of each setting, from the first source that has one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from etcd_actions.config.setting import Setting
from etcd_actions.config.sources import Given, Source
from etcd_actions.errors import ConfigError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Value(Generic[T_co]):
    """The value of a setting and its source. Its repr shows no secret.

    Attributes:
        value: The value.
        given: The text and its source; None for the default.
        rank: The index of its source among the sources; the lowest one wins.
        shown: The value as text for people; None for no value.
    """

    value: T_co = field(repr=False)
    given: Given | None
    rank: int
    shown: str | None

    @property
    def source(self) -> str:
        """The flag, the variable or the key of a file, or ``default``."""
        return "default" if self.given is None else self.given.source


class Resolution:
    """The values of settings.

    Attributes:
        errors: The unusable values, each with its flag or variable; their settings have no value.
    """

    def __init__(
        self, values: dict[Setting[object], Value[object]], errors: Sequence[ConfigError]
    ) -> None:
        self._values = values
        self.errors = errors

    def __getitem__(self, setting: Setting[T]) -> Value[T]:
        return cast("Value[T]", self._values[setting])

    def get(self, setting: Setting[T]) -> Value[T] | None:
        """The value of a setting, None if it is unusable."""
        return cast("Value[T] | None", self._values.get(setting))


def resolve(
    settings: Iterable[Setting[object]],
    sources: Sequence[Source],
    errors: Iterable[ConfigError] = (),
) -> Resolution:
    """Read each setting from the first source that has it; ``errors`` are those found before."""
    values: dict[Setting[object], Value[object]] = {}
    found = list(errors)
    for setting in settings:
        try:
            values[setting] = _resolve(setting, sources)
        except ConfigError as error:
            found.append(error)
    return Resolution(values, found)


def _resolve(setting: Setting[T], sources: Sequence[Source]) -> Value[T]:
    for rank, source in enumerate(sources):
        given = source.find(setting)
        if given is not None:
            try:
                value = setting.kind.parse(given.text)
            except ValueError as error:
                raise ConfigError(f"{given.source}: {error}") from None
            return Value(value, given, rank, setting.kind.show(given.text))
    return Value(setting.default_value, None, len(sources), setting.default)
