"""The data directory of an embedded etcd: its lock, its state file, its default.

Its files::

    lock        locked while a process owns the directory; contains its pid
    state.json  the version of etcd that wrote the data; while etcd runs, its address and pids
    etcd/       the data
    etcd.log    the output of etcd since its last start; etcd.log.1 is that of the start before
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from etcd_actions._internal.logger import get_logger
from etcd_actions.errors import ConfigError, DataDirectoryInUse, EmbeddedEtcdError
from etcd_actions.etcd.versions import EtcdVersion

_POLL = 0.02
# running_endpoint() holds the lock for some microseconds when no process owns it.
_LOCK_ATTEMPTS = 5

_log = get_logger(__name__)


class State(msgspec.Struct, kw_only=True, frozen=True):
    """``state.json``: ``endpoint`` is empty until etcd serves, the pids are 0 while it is down."""

    version: EtcdVersion
    owner_pid: int = 0
    etcd_pid: int = 0
    etcd_start_time: int = 0
    endpoint: str = ""


def default_data_dir() -> Path:
    """``$ETCD_ACTIONS_DATA_DIR``, else ``etcd-actions/default`` in the user's data directory.

    That is ``$XDG_DATA_HOME`` if it is absolute, else ``~/.local/share``.

    Raises:
        ConfigError: None of them is set, and the user has no home directory.
    """
    if chosen := os.environ.get("ETCD_ACTIONS_DATA_DIR"):
        return Path(chosen)
    data_home = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not data_home.is_absolute():
        try:
            data_home = Path.home() / ".local" / "share"
        except RuntimeError:
            raise ConfigError(
                "this user has no home directory, so there is no default data directory: give "
                "one with --data-dir or ETCD_ACTIONS_DATA_DIR, or set HOME"
            ) from None
    return data_home / "etcd-actions" / "default"


def is_default_data_dir(directory: Path) -> bool:
    """Whether an absolute directory is the default one."""
    try:
        return directory == absolute(None)
    except ConfigError:
        return False


def running_endpoint(data_dir: Path | None = None) -> str | None:
    """The address of the etcd that runs on this directory, None if none does.

    It reads small files and never waits. The address can be outdated when it is used.
    """
    try:
        directory = absolute(data_dir)
    except ConfigError:
        if data_dir is not None:
            raise
        return None
    state = read_state(directory)
    if state is None or not state.endpoint:
        return None
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return state.endpoint
    finally:
        os.close(descriptor)
    return None


@asynccontextmanager
async def lock(directory: Path) -> AsyncIterator[None]:
    """Create the directory if it does not exist, and own it.

    Raises:
        DataDirectoryInUse: Another process, or another context of this one, owns it.
        EmbeddedEtcdError: It cannot be used.
    """
    try:
        (directory / "etcd").mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unusable(directory, error) from error
    try:
        for _ in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await trio.sleep(_POLL)
        else:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise DataDirectoryInUse(
                f"the data directory {directory} is in use by process {owner or 'unknown'}: "
                "end that process, or choose another directory with --data-dir"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


def read_state(directory: Path) -> State | None:
    """The state file, None if there is none that can be decoded."""
    file = directory / "state.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=State)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(directory, error) from error
    except msgspec.MsgspecError as error:
        _log.warning("unreadable state of embedded etcd", file=str(file), error=str(error))
        return None


def write_state(directory: Path, state: State) -> None:
    """Replace the state file."""
    draft = directory / "state.json.new"
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
        draft.replace(directory / "state.json")
    except OSError as error:
        raise EmbeddedEtcdError(f"{draft} cannot be written: {error}") from error


def absolute(data_dir: Path | None) -> Path:
    """The absolute path of a directory, or of the default one.

    Raises:
        ConfigError: There is no such user, a loop of links, or no working directory.
    """
    given = default_data_dir() if data_dir is None else data_dir
    try:
        return given.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"the data directory {given} cannot be found: {error}: give another with --data-dir"
        ) from None


def _unusable(directory: Path, error: OSError) -> EmbeddedEtcdError:
    return EmbeddedEtcdError(
        f"the data directory {directory} cannot be used: {error}; choose another with --data-dir"
    )
