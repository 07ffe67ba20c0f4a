"""The tokens in a file, with their identities and projects."""

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

# Bytes of the file.
_MOST_BYTES = 1024 * 1024
_MOST_NAME = 100
_ATTRIBUTE: Final = re.compile(r"([a-z_]+)=(.*)", re.DOTALL)

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The identity of a client.

    Attributes:
        client: The key by which its requests are counted.
        subject: Its name; empty for none.
        projects: The projects that it may use; None for all.
        is_worker: Whether it is a worker, which may use its part of etcd and nothing else.
    """

    client: str
    subject: str = ""
    projects: frozenset[str] | None = None
    is_worker: bool = False


class Tokens:
    """The accepted tokens: the lines of a file that is read again when it changes.

    A line is a token, and may have attributes: ``TOKEN name=alice projects=a,b``. A token
    without ``projects`` may use all. ``TOKEN name=gpu role=worker`` is the token of workers. Empty
    lines and lines that start with ``#`` are ignored.

    Raises:
        ConfigError: The file cannot be read, has no token, or has an unusable line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._tokens: Sequence[tuple[bytes, Identity]] = ()
        self._refresh()

    def __repr__(self) -> str:
        return f"Tokens({str(self._path)!r})"

    def find(self, token: str) -> Identity | None:
        """The identity of a token; None if the file does not have it."""
        try:
            self._refresh()
        except ConfigError as error:
            # The tokens that were read before stay valid.
            _log.warning("tokens_unreadable", error=str(error))
        found = None
        shown = token.encode(errors="surrogateescape")
        for accepted, identity in self._tokens:
            # All are compared: the time reveals nothing.
            if hmac.compare_digest(accepted, shown):
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
            raise ConfigError(f"tokens: {self._path} has one token in two lines: remove one")
        if not tokens:
            raise ConfigError(f"tokens: {self._path} has none: write one a line")
        self._seen, self._tokens = seen, tokens


def _of_line(line: str, number: int) -> tuple[bytes, Identity]:
    """A token and its identity. Errors never contain the token."""
    token, *words = line.split()
    attributes = [_ATTRIBUTE.fullmatch(word) for word in words]
    if not any(attributes):
        # A token may contain spaces.
        return line.encode(), Identity(client=f"token {number}")
    subject, projects, is_worker = "", None, False
    seen: set[str] = set()
    for word, attribute in zip(words, attributes, strict=True):
        if attribute is None:
            raise ValueError(f"{word!r} is neither name=..., projects=... nor role=worker")
        key, value = attribute.groups()
        if key in seen:
            raise ValueError(f"{key}= is there twice: give it once")
        seen.add(key)
        match key:
            case "name":
                subject = _name(value)
            case "projects":
                projects = _projects(value)
            case "role":
                is_worker = _is_worker(value)
            case _:
                raise ValueError(f"{key}= is unknown: a token may have name=, projects= and role=")
    if is_worker and not subject:
        raise ValueError("role=worker needs name=: the leases of workers belong to a name")
    if is_worker and projects is not None:
        raise ValueError(
            "role=worker and projects=: a worker runs the actions of all projects: leave projects= "
            "out, or give the project its own etcd-actions run with --namespace"
        )
    return token.encode(), Identity(
        client=f"token {number}", subject=subject, projects=projects, is_worker=is_worker
    )


def _name(value: str) -> str:
    if not value or len(value) > _MOST_NAME or not value.isprintable():
        raise ValueError(f"name= needs a name of 1 to {_MOST_NAME} characters")
    return value


def _is_worker(value: str) -> bool:
    if value != "worker":
        raise ValueError(f"role={value} is unknown: the only role is worker")
    return True


def _projects(value: str) -> frozenset[str]:
    projects = [each.strip() for each in value.split(",")]
    if not all(projects):
        raise ValueError(
            "projects= needs names between commas, such as projects=a,b; omit it for all projects"
        )
    return frozenset(projects)
