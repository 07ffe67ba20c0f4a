"""A task of the same user reads nothing of the process that runs the executor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from etcd_actions.embedded.embedded_etcd import open_embedded_etcd

# It imports all first: another user may not reach the interpreter.
PROGRAM = """
import contextlib, ctypes, json, os, sys
from pathlib import Path
import psutil
from etcd_actions.app.executor import forbid_reading
from etcd_actions._internal.untrusted_files import read_regular

libc = ctypes.CDLL(None, use_errno=True)
# A root without capabilities is as good as another user.
with contextlib.suppress(PermissionError):
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
libc.prctl(4, 1, 0, 0, 0)

def attempt(pid):
    found = []
    for name in ("environ", "mem", "maps", "fd/2", "cwd"):
        path = f"/proc/{pid}/{name}"
        try:
            os.readlink(path) if name in ("fd/2", "cwd") else open(path, "rb").read(1)
        except PermissionError:
            continue
        except OSError:
            pass
        found.append(name)
    if libc.ptrace(16, pid, 0, 0) == 0:
        os.waitpid(pid, 0)
        libc.ptrace(17, pid, 0, 0)
        found.append("ptrace")
    return found

def of_a_child():
    ours, theirs = os.pipe()
    if os.fork() == 0:
        os.write(theirs, json.dumps(attempt(os.getppid())).encode())
        os._exit(0)
    os.close(theirs)
    os.wait()
    return json.loads(os.read(ours, 4096))

before = of_a_child()
forbid_reading()
after = of_a_child()
# What this process itself needs goes on.
own = read_regular(sys.argv[1], limit=100).decode(), psutil.Process().num_fds() > 2
print(json.dumps([before, after, own, psutil.Process().memory_info().rss > 0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it is Linux that promises this")
def test_a_process_that_forbids_it_is_not_read_by_its_own_user(tmp_path: Path) -> None:
    import json  # noqa: PLC0415

    path = Path("/etc/hostname") if os.geteuid() == 0 else tmp_path / "file"
    if os.geteuid() != 0:
        path.write_text("x")
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    before, after, own, measured = json.loads(said.stdout)
    assert {"environ", "maps", "fd/2"} <= set(before)
    assert after == []
    assert own == [path.read_text(), True]
    assert measured


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="there is no /proc")
async def test_the_embedded_etcd_has_none_of_our_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ETCDCTL_PASSWORD", "ETCD_ROOT_PASSWORD", "AWS_SECRET_ACCESS_KEY", "ANYTHING"):
        monkeypatch.setenv(name, "hunter2")
    before = set(psutil.Process().children())
    async with open_embedded_etcd(tmp_path / "etcd", client_port=0):
        (etcd,) = set(psutil.Process().children()) - before
        environment = Path(f"/proc/{etcd.pid}/environ").read_bytes()
    assert b"PATH=" in environment
    assert b"hunter2" not in environment
