"""For how long an attempt has run, also when it was started by an executor before this one.

A file beside ``started`` says when the attempt began, on the clock that counts since the machine
started, and of which start that was. Without it the wall clock decides.
"""

from __future__ import annotations

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from etcd_actions._internal.call_time import boot_time

CLOCK: Final = "clock"

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_log = structlog.get_logger(__name__)


def running_for(directory: Path, started: Path) -> float | None:
    """Seconds since an attempt began; None where it did not begin.

    Args:
        directory: The attempt's.
        started: What its process wrote when it began.
    """
    if (began := _began(directory)) is not None:
        return max(0.0, boot_time() - began)
    try:
        return max(0.0, time.time() - started.lstat().st_mtime)
    except OSError:
        return None


def note_beginning(directory: Path, seconds: float) -> None:
    """Write down that an attempt began so many seconds ago, unless that is written already.

    An attempt of which it cannot be written down is measured by the wall clock.
    """
    if _began(directory) is not None:
        return
    text = f"{boot_time() - seconds:.3f} {_boot_id()}\n"
    new = directory / f"{CLOCK}.new"
    try:
        # Never through a link, and never waiting: its task can reach the directory.
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(new, flags, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        new.replace(directory / CLOCK)
    except OSError as error:
        _log.debug("beginning_not_noted", directory=str(directory), error=str(error))


def _began(directory: Path) -> float | None:
    with suppress(OSError, ValueError):
        descriptor = os.open(directory / CLOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            began, _, boot = file.read(200).decode().partition(" ")
        if boot.strip() == _boot_id() and math.isfinite(float(began)):
            return min(float(began), boot_time())
    return None


def _boot_id() -> str:
    with suppress(OSError):
        return _BOOT_ID.read_text().strip()
    return "unknown"
