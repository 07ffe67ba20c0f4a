"""Reads a unit of systemd, as far as its tests need it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path


class Unit:
    """A template unit for one instance.

    Args:
        path: The file.
        instance: The part of the unit's name behind the @.
        moved: Paths of the unit that are elsewhere in this test, the longest first.
    """

    def __init__(self, path: Path, instance: str, moved: Mapping[str, Path] | None = None) -> None:
        text = path.read_text().replace("%i", instance)
        for old, new in (moved or {}).items():
            text = text.replace(old, str(new))
        self.text = text

    def values(self, name: str) -> list[str]:
        """All values of a directive, in order."""
        return re.findall(rf"^{name}=(.*)$", self.text, re.MULTILINE)

    def value(self, name: str) -> str:
        """The value of a directive that is there once."""
        (found,) = self.values(name)
        return found

    @property
    def environment(self) -> dict[str, str]:
        """The environment that the unit gives its process, with the files that exist."""
        found: dict[str, str] = {}
        for line in self.values("Environment"):
            name, _, value = line.partition("=")
            found[name] = value
        for line in self.values("EnvironmentFile"):
            file = Path(line.removeprefix("-"))
            assert line.startswith("-") or file.exists()
            if file.exists():
                found |= dict(
                    each.split("=", 1) for each in file.read_text().splitlines() if "=" in each
                )
        return found

    @property
    def arguments(self) -> list[str]:
        """The arguments of the command."""
        return shlex.split(self.value("ExecStart"))[1:]
