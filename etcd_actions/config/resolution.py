"""Setting by setting, what the sources say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar, cast

from etcd_actions.config.settings import Setting
from etcd_actions.config.sources import Given, Source
from etcd_actions.errors import ConfigError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class Value(Generic[T_co]):
    """A setting's value, and who gave it. Its text shows no secret.

    Attributes:
        value: The value.
        given: The text it was made of, and the flag or variable; None for the default.
        rank: The place of its source among the sources; the lower one wins.
        shown: The value for people to read, None for none.
    """

    value: T_co = field(repr=False)
    given: Given | None
    rank: int
    shown: str | None

    @property
    def source(self) -> str:
        """The flag or the variable, or ``default``."""
        return "default" if self.given is None else self.given.source


class Resolution:
    """The values that were found.

    Attributes:
        errors: What is unusable, each naming its flag or variable; those settings have no
            value.
    """

    def __init__(
        self, values: dict[Setting[object], Value[object]], errors: Sequence[ConfigError]
    ) -> None:
        self._values = values
        self.errors = errors

    def __getitem__(self, setting: Setting[T]) -> Value[T]:
        return cast("Value[T]", self._values[setting])

    def get(self, setting: Setting[T]) -> Value[T] | None:
        """The value of a setting, None where it is unusable."""
        return cast("Value[T] | None", self._values.get(setting))


def resolve(
    settings: Iterable[Setting[object]],
    sources: Sequence[Source],
    unusable: Iterable[ConfigError] = (),
) -> Resolution:
    """Ask the sources, in order, for each setting; the first that has one counts.

    Args:
        settings: Which ones.
        sources: Where they may be given.
        unusable: What is known to be wrong already.
    """
    values: dict[Setting[object], Value[object]] = {}
    errors: list[ConfigError] = list(unusable)
    for setting in settings:
        try:
            values[setting] = _resolve(setting, sources)
        except ConfigError as error:
            errors.append(error)
    return Resolution(values, errors)


def _resolve(setting: Setting[T], sources: Sequence[Source]) -> Value[T]:
    for rank, source in enumerate(sources):
        given = source.find(setting)
        if given is not None:
            try:
                value = setting.parse(given.text)
            except ValueError as error:
                raise ConfigError(f"{given.source}: {error}") from None
            return Value(value, given, rank, setting.show(given.text))
    return Value(setting.default_value, None, len(sources), setting.default)
