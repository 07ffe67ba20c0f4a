"""TLS contexts that are created before a fork, each for one caller after it.

``ssl.create_default_context(cafile=...)`` reads some 140 authorities, for 20 ms, and each HTTP
client of Flyte's SDK calls it with certifi's file, whether it will use TLS or not. Such a call gets
a context of its own. The original function serves all other calls: those with other arguments, in
a process in which the classes of :mod:`ssl` were replaced (as truststore does) or that logs its
keys, and those after the contexts are used up.
"""

from __future__ import annotations

import functools
import os
import ssl
from pathlib import Path
from typing import Any

# The device, inode, size and time of the file at the creation of the contexts.
_Identity = tuple[int, int, int, int]


class ReadyContexts:
    """Contexts for the authorities of one file.

    Args:
        cafile: The file.
        count: How many are made.

    Raises:
        OSError: The file cannot be read, or has no authorities.
    """

    def __init__(self, cafile: str, count: int) -> None:
        self._make = ssl.create_default_context
        self._cafile = cafile
        self._identity = _identity(cafile)
        self._classes = _classes()
        self._ready = [self._make(cafile=cafile) for _ in range(count)]

    @property
    def count(self) -> int:
        """The number of unused contexts in this process."""
        return len(self._ready)

    def stand_in(self) -> None:
        """Replace ``ssl.create_default_context`` in this process."""
        make = self._make

        @functools.wraps(make)
        def create_default_context(*arguments: Any, **named: Any) -> ssl.SSLContext:
            if not arguments and named == {"cafile": self._cafile} and self._fit():
                try:
                    # Atomic, so that no two threads get the same context.
                    return self._ready.pop()
                except IndexError:
                    pass
            return make(*arguments, **named)

        ssl.create_default_context = create_default_context

    def _fit(self) -> bool:
        """Whether a new context would be the same."""
        if os.environ.get("SSLKEYLOGFILE") or _classes() != self._classes:
            return False
        try:
            return _identity(self._cafile) == self._identity
        except OSError:
            return False


def _identity(path: str) -> _Identity:
    found = Path(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _classes() -> tuple[object, ...]:
    """The functions that make a context and read authorities."""
    context = ssl.SSLContext
    return context, context.__new__, context.load_verify_locations
