"""Reads a password from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from etcd_actions._internal.named_files import read_named_file, text_of
from etcd_actions.errors import ConfigError

_MOST_BYTES: Final = 4096


def read_password_file(path: Path, *, pipes: bool = False) -> str:
    """The password: the only line of the file, without its end.

    Args:
        path: The file.
        pipes: Whether it may be a pipe, which can be read only once.

    Raises:
        ConfigError: It cannot be read, or has not exactly one line; the message names it.
    """
    try:
        text = text_of(read_named_file(path, _MOST_BYTES, pipes=pipes))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from None
    password = text.removesuffix("\n").removesuffix("\r")
    if not password:
        raise ConfigError(f"{path}: it is empty, put the password into it")
    if "\n" in password or "\r" in password:
        raise ConfigError(f"{path}: it has several lines: put the password alone into it")
    return password
