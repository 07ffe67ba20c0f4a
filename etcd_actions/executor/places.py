"""Paths on this machine: inputs, outputs, and what is kept of an attempt."""

from __future__ import annotations

import fcntl
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from etcd_actions.executor.attempt_clock import running_for

STARTED: Final = "started"
"""Written by the process of an attempt, as the first thing that it does."""
EXIT: Final = "exit"
"""Written by whoever reaped that process: how it ended."""
REQUEST: Final = "request"
LOCK: Final = "lock"
LOG: Final = "log"


def local_path(uri: str) -> Path | None:
    """The path of a URI on this machine; None where it is elsewhere."""
    if uri.startswith("/"):
        return Path(uri)
    split = urlsplit(uri)
    if split.scheme == "file" and split.netloc in ("", "localhost") and split.path:
        return Path(unquote(split.path))
    return None


class AttemptPlace:
    """The directory of one attempt of one incarnation of an action.

    Its process holds a lock on a file in it for as long as it lives, through a descriptor
    that it inherited: so whoever comes later learns whether it lives, also when the executor
    that started it was killed, and even when its number is another process's by now.
    """

    def __init__(self, state_dir: Path, uid: str, attempt: int) -> None:
        self.path = state_dir / "attempts" / uid / str(attempt)

    def make(self) -> None:
        """Create the directory, for this user only."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def try_lock(self) -> int | None:
        """Lock it: a descriptor, to be closed; None while a process of the attempt lives."""
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @property
    def is_alive(self) -> bool:
        """Whether a process of the attempt lives."""
        if not self.path.exists():
            return False
        descriptor = self.try_lock()
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    @property
    def pid(self) -> int | None:
        """The number of its process; None before it began."""
        with suppress(OSError, ValueError):
            return int((self.path / STARTED).read_text())
        return None

    @property
    def was_started(self) -> bool:
        """Whether its process began to run."""
        return (self.path / STARTED).exists()

    @property
    def exit_code(self) -> int | None:
        """How it ended, negative for a signal; None where nobody saw it."""
        with suppress(OSError, ValueError):
            return int((self.path / EXIT).read_text())
        return None

    def running_for(self) -> float | None:
        """Seconds since the attempt began, across restarts of ours; None where it did not."""
        return running_for(self.path, self.path / STARTED)

    def write_request(self, request: dict[str, Any]) -> Path:
        """Leave what is to be run; it holds the environment, so nobody else may read it."""
        path = self.path / REQUEST
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(request, file)
        return path

    def open_log(self) -> int:
        """The descriptor of its log, to append to."""
        return os.open(
            self.path / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )

    def shorten_log(self, most: int) -> None:
        """Keep the end of a log that is too long."""
        path = self.path / LOG
        with suppress(FileNotFoundError):
            size = path.stat().st_size
            if size > most:
                with path.open("rb+") as file:
                    file.seek(size - most)
                    end = file.read()
                    file.seek(0)
                    file.write(end)
                    file.truncate()

    def last_lines(self, most: int = 20) -> str:
        """The end of its log, for an error that says nothing else."""
        with suppress(OSError), (self.path / LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-most:])
        return ""

    def kill(self, number: signal.Signals) -> None:
        """Send a signal to the process and all that it started."""
        pid = self.pid
        if pid is not None and self.is_alive:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)
