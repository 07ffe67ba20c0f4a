"""Tokens that a file lists: whose they are, and which projects they may use."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from etcd_actions._internal.named_files import read_named_file, text_of
from etcd_actions.errors import ConfigError

_MOST_BYTES = 1024 * 1024
_MOST_NAME = 100
_ATTRIBUTE: Final = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Who a client is.

    Attributes:
        client: Tells clients apart whose requests are counted.
        subject: Its name; empty where nothing says it.
        projects: The projects that it may use; None for all.
    """

    client: str
    subject: str = ""
    projects: frozenset[str] | None = None


class Tokens:
    """The tokens that clients may show: the lines of a file that is read again when it changes.

    A line is a token, and may say more behind it: ``TOKEN name=alice projects=a,b``. A token
    without ``projects`` may use all. Empty lines and lines that begin with ``#`` do not count.

    Raises:
        ConfigError: The file cannot be read, holds no token, or has an unusable line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._tokens: Sequence[tuple[bytes, Identity]] = ()
        self._refresh()

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    def find(self, token: str) -> Identity | None:
        """Whose token it is; None for one that the file does not have."""
        try:
            self._refresh()
        except ConfigError as error:
            # Those that were read before go on to count.
            _log.warning("tokens_unreadable", error=str(error))
        found = None
        shown = token.encode(errors="surrogateescape")
        for known, identity in self._tokens:
            # All are compared, so that the time says nothing.
            if hmac.compare_digest(known, shown):
                found = identity
        return found

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            seen = (status.st_ino, status.st_size, status.st_mtime_ns)
            if seen == self._seen:
                return
            text = text_of(read_named_file(self._path, _MOST_BYTES))
        except OSError as error:
            raise ConfigError(f"tokens: {self._path} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise ConfigError(f"tokens: {self._path}: {error}") from None
        tokens = []
        for number, line in enumerate(text.splitlines(), 1):
            if (stripped := line.strip()) and not stripped.startswith("#"):
                try:
                    tokens.append(_of_line(stripped, number))
                except ValueError as error:
                    raise ConfigError(f"tokens: {self._path}, line {number}: {error}") from None
        if len({token for token, _ in tokens}) < len(tokens):
            raise ConfigError(f"tokens: {self._path} has one token in two lines: leave one out")
        if not tokens:
            raise ConfigError(f"tokens: {self._path} holds none: write one a line")
        self._seen, self._tokens = seen, tokens


def _of_line(line: str, number: int) -> tuple[bytes, Identity]:
    """A token and whose it is. What is raised never shows the token."""
    token, *words = line.split()
    attributes = [_ATTRIBUTE.fullmatch(word) for word in words]
    if not any(attributes):
        # A token may have spaces, as it always could.
        return line.encode(), Identity(client=f"token {number}")
    subject, projects = "", None
    seen: set[str] = set()
    for word, attribute in zip(words, attributes, strict=True):
        if attribute is None:
            raise ValueError(f"{word!r} is no name=... and no projects=...")
        key, value = attribute.groups()
        if key in seen:
            raise ValueError(f"{key}= is there twice: give it once")
        seen.add(key)
        match key:
            case "name":
                subject = _name(value)
            case "projects":
                projects = _projects(value)
            case _:
                raise ValueError(f"{key}= is unknown: behind a token may be name= and projects=")
    return token.encode(), Identity(client=f"token {number}", subject=subject, projects=projects)


def _name(value: str) -> str:
    if not value or len(value) > _MOST_NAME or not value.isprintable():
        raise ValueError(f"name= needs a name of 1 to {_MOST_NAME} characters")
    return value


def _projects(value: str) -> frozenset[str]:
    projects = [each.strip() for each in value.split(",")]
    if not all(projects):
        raise ValueError(
            "projects= needs names between commas, such as projects=a,b; leave it out for all"
        )
    return frozenset(projects)
