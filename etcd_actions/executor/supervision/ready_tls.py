"""TLS contexts that are made before a fork, each for one caller after it.

``ssl.create_default_context(cafile=...)`` reads some 140 authorities, for 20 ms, and each HTTP
client of Flyte's SDK calls it with certifi's file, whether it will use TLS or not. A context
that is there already is given to such a call. It is the caller's own: no other caller in the
process gets it, and what is done to it after the fork no other process sees.

All else is done by the function that is stood in for: another call, another file or another
content of it, a process in which the classes of :mod:`ssl` were replaced (as truststore does), one
that logs its keys, and each call after the contexts are used up.

It is run in a process that may have no etcd_actions, so it imports nothing of it.
"""

from __future__ import annotations

import functools
import os
import ssl
from pathlib import Path
from typing import Any

# What the file was when the contexts were made.
_Identity = tuple[int, int, int, int]


class ReadyContexts:
    """Contexts for the authorities of one file.

    Args:
        cafile: The file.
        count: How many there are.

    Raises:
        OSError: The file cannot be read, or holds no authorities.
    """

    def __init__(self, cafile: str, count: int) -> None:
        self._make = ssl.create_default_context
        self._cafile = cafile
        self._identity = _identity(cafile)
        self._classes = _classes()
        self._ready = [self._make(cafile=cafile) for _ in range(count)]

    @property
    def count(self) -> int:
        """How many are left in this process."""
        return len(self._ready)

    def stand_in(self) -> None:
        """Answer ``ssl.create_default_context`` in this process from here on."""
        make = self._make

        @functools.wraps(make)
        def create_default_context(*arguments: Any, **named: Any) -> ssl.SSLContext:
            if not arguments and named == {"cafile": self._cafile} and self._fit():
                try:
                    # One step, so that no two threads get the same.
                    return self._ready.pop()
                except IndexError:
                    pass
            return make(*arguments, **named)

        ssl.create_default_context = create_default_context

    def _fit(self) -> bool:
        """Whether a context that is made now would be the same."""
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
    """What makes a context, and reads authorities into it."""
    context = ssl.SSLContext
    return context, context.__new__, context.load_verify_locations
