"""The sources of the secrets of tasks: variables of the process's environment, or files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from etcd_actions.errors import EtcdActionsError

MOST_BYTES: Final = 64 * 1024
"""The most bytes of a secret: a variable of a process cannot be much larger."""

_SOURCE: Final = re.compile(r"([A-Za-z0-9_.\-]+(?:/[A-Za-z0-9_.\-]+)?)=(env|file):(.+)", re.DOTALL)
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class SecretUnavailable(EtcdActionsError):
    """A secret cannot be read; the message has its source, and no part of its value."""


@dataclass(frozen=True)
class SecretSource:
    """The source of one secret.

    Attributes:
        name: Its key, or ``group/key``, as tasks request it.
        kind: Whether the source is a variable or a file.
        place: The variable's name, or the file's path.
    """

    name: str
    kind: Literal["env", "file"]
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"

    def read(self) -> str:
        """Read the present value; a newline at the end of a file is removed.

        Raises:
            SecretUnavailable: There is none, or it cannot be in a variable.
        """
        if self.kind == "env":
            value = os.environ.get(self.place)
            if value is None:
                raise SecretUnavailable(f"the service's environment has no {self.place}")
        else:
            value = _text_of(Path(self.place))
        if "\0" in value or len(os.fsencode(value)) > MOST_BYTES:
            raise SecretUnavailable(
                f"{self}: no variable takes it: give a text without NUL of at most {MOST_BYTES} "
                "bytes"
            )
        return value


def parse_secret_sources(text: str) -> tuple[SecretSource, ...]:
    """Parse ``NAME=env:VARIABLE`` and ``NAME=file:PATH``, separated by commas.

    Raises:
        ValueError: An entry has another form. The message does not quote it: it may be a secret.
    """
    found: dict[str, SecretSource] = {}
    for number, each in enumerate(text.split(","), start=1):
        match = _SOURCE.fullmatch(each.strip())
        if match is None:
            raise ValueError(
                f"entry {number} is neither NAME=env:VARIABLE nor NAME=file:PATH: the value "
                "itself is not given here"
            )
        name, kind, place = match.groups()
        if kind == "env" and not _VARIABLE.fullmatch(place):
            raise ValueError(f"entry {number}, {name}: after env: comes the name of a variable")
        if kind == "file" and not Path(place).is_absolute():
            raise ValueError(f"entry {number}, {name}: after file: comes an absolute path")
        if name in found:
            raise ValueError(f"{name} is given twice")
        found[name] = SecretSource(name, "env" if kind == "env" else "file", place)
    return tuple(found.values())


def _text_of(path: Path) -> str:
    try:
        # Links are followed: volumes of secrets consist of links.
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 2)
        text = data.decode()
    except OSError as error:
        raise SecretUnavailable(f"file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        # Without the cause, which has the text.
        raise SecretUnavailable(f"file {path} is not UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")
