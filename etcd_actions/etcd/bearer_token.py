"""The token of a client of the service, in a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from etcd_actions._internal.named_files import read_named_file, text_of
from etcd_actions.errors import ConfigError

_MOST_BYTES: Final = 64 * 1024


def read_bearer_token(path: Path, flag: str = "token_file", *, pipes: bool = False) -> str:
    """The token in a file.

    Args:
        path: The file.
        flag: The name of the setting, for messages.
        pipes: Whether it may be a pipe, which can be read once.

    Raises:
        ConfigError: It cannot be read, or has no token; the message names the setting.
    """
    try:
        words = text_of(read_named_file(path, _MOST_BYTES, pipes=pipes)).split()
    except OSError as error:
        raise ConfigError(f"{flag}: {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"{flag}: {path}: {error}") from None
    if not words:
        raise ConfigError(f"{flag}: {path} is empty: put the token into it")
    if not re.fullmatch("[!-~]{1,8192}", words[0]):
        raise ConfigError(
            f"{flag}: {path}: no token: one has at most 8192 characters, and of ASCII only"
        )
    return words[0]
