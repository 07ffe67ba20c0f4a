"""The environment of our own helpers, which tasks can read: they run as the same user."""

from __future__ import annotations

import os
from typing import Final

# An allow list: what else is there may be a password, a token or a cloud's key.
_NAMES: Final = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LC_CTYPE",
    "LD_LIBRARY_PATH",
    "LOGNAME",
    "PATH",
    "SHELL",
    "TMPDIR",
    "TZ",
    "USER",
)


def helper_environment() -> dict[str, str]:
    """What the fork server and the supervisors get of our environment."""
    return {name: os.environ[name] for name in _NAMES if name in os.environ}
