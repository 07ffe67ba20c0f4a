"""The list of attacks, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.support.hostile_wire import Target

Observed = dict[str, Any]
"""What an attack found, for people; what must hold it asserts itself."""

SERVICE: Final = ("service",)
PLAIN: Final = ("service", "monitoring")
BOTH: Final = ("service", "monitoring", "tls")


@dataclass(frozen=True)
class Attack:
    """One way to be hostile.

    Attributes:
        name: What it is called.
        targets: Kinds of ports that it fits.
        make: Attacks, yields once the worst is reached, and then leaves.
    """

    name: str
    targets: tuple[str, ...]
    make: Callable[[Target], AbstractContextManager[Observed]]


ATTACKS: Final[dict[str, Attack]] = {}


def attack(
    targets: tuple[str, ...],
) -> Callable[[Callable[[Target], Iterator[Observed]]], Callable[[Target], Iterator[Observed]]]:
    """Put a generator on the list: it attacks, yields what it observed, and cleans up."""

    def add(
        function: Callable[[Target], Iterator[Observed]],
    ) -> Callable[[Target], Iterator[Observed]]:
        name = function.__name__
        assert name not in ATTACKS, name
        ATTACKS[name] = Attack(name, targets, contextmanager(function))
        return function

    return add
