"""``python -m tests.support.situation ARGUMENT...``: prints what a process finds at its start."""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from pathlib import Path


def main() -> None:
    """Print it as JSON, with what comes from standard input."""
    descriptors = sorted(each.name for each in Path("/proc/self/fd").iterdir())
    status = Path("/proc/self/status").read_text().splitlines()
    signals = [line for line in status if line.startswith(("SigBlk", "SigIgn", "SigCgt", "Umask"))]
    streams = [
        (each.encoding, each.errors, each.line_buffering, each.newlines, each.fileno(), each.mode)
        for each in (sys.stdin, sys.stdout, sys.stderr)
    ]
    main_module = sys.modules["__main__"]
    found = {
        "argv": sys.argv,
        "orig_argv": sys.orig_argv,
        "environ": dict(os.environ),
        "cwd": str(Path.cwd()),
        "path": sys.path,
        "main": [main_module.__name__, main_module.__file__],
        "signals": signals,
        "streams": streams,
        "descriptors": descriptors,
        "parent": os.getppid(),
        "group": [os.getpgid(0), os.getsid(0)],
        "garbage": [gc.isenabled(), gc.get_threshold()],
        "warnings": [str(each) for each in warnings.filters],
        "input": sys.stdin.read(),
    }
    json.dump(found, sys.stdout)
    print("ä", file=sys.stderr)


if __name__ == "__main__":
    main()
