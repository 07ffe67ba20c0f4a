"""A process that is forked finds what one with an interpreter of its own finds."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import environment
from tests.support.warm import MODULE, WarmPopen

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forked only on Linux")

SITUATION = (*MODULE, "tests.support.situation")


def finish(popen: type[subprocess.Popen[Any]], cwd: Path, **extra: str) -> tuple[int, Any, bytes]:
    with popen(
        [*SITUATION, "--flag", "ä\udcff"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=cwd,
        env=environment(EXTRA="\udcff", TZ="Asia/Tokyo", **extra),
    ) as process:
        out, err = process.communicate("ö\r\n".encode(), 60)
    return process.returncode, json.loads(out), err


@pytest.mark.parametrize("hang_up", [signal.SIG_DFL, signal.SIG_IGN])
def test_it_finds_what_a_fresh_one_finds(tmp_path: Path, hang_up: signal.Handlers) -> None:
    before = signal.signal(signal.SIGHUP, hang_up)
    try:
        fresh, warm = finish(subprocess.Popen, tmp_path), finish(WarmPopen, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (warm[0], warm[2]) == (fresh[0], fresh[2]) == (0, "ä\n".encode())
    for name, found in fresh[1].items():
        assert warm[1][name] == found, name


def test_a_signal_ends_it(tmp_path: Path) -> None:
    with WarmPopen(SITUATION, stdin=subprocess.PIPE, env=environment()) as process:
        assert process.poll() is None
        process.kill()
        assert process.wait(60) == -signal.SIGKILL


def test_what_the_interpreter_reads_is_for_a_fresh_one(tmp_path: Path) -> None:
    _, found, err = finish(WarmPopen, tmp_path, PYTHONIOENCODING="latin-1:replace")
    assert (found["streams"][1][1], err) == ("replace", b"\xe4\n")
