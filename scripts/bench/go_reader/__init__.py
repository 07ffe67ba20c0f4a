"""The reader in Go, built from ``main.go`` with Debian's packages ``golang-go`` and
``golang-etcd-server-dev``, which has clientv3.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("main.go")
_PROGRAM = Path(__file__).resolve().parents[3] / ".venv" / "bench-go-reader"
_PACKAGES = Path("/usr/share/gocode")
_CLIENT = _PACKAGES / "src/go.etcd.io/etcd/clientv3"


def available() -> bool:
    """Whether Go and clientv3 are installed."""
    return shutil.which("go") is not None and _CLIENT.is_dir()


def program() -> Path:
    """The program, built if it is older than its source.

    Raises:
        CalledProcessError: Go does not build it.
    """
    if not _PROGRAM.exists() or _PROGRAM.stat().st_mtime < _SOURCE.stat().st_mtime:
        subprocess.run(
            ["go", "build", "-o", str(_PROGRAM), "."],
            cwd=_SOURCE.parent,
            env=os.environ | {"GO111MODULE": "off", "GOPATH": str(_PACKAGES)},
            check=True,
        )
    return _PROGRAM
