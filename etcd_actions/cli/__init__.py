"""The command line, ``etcd-actions``."""

from __future__ import annotations

import sys
from importlib.util import find_spec

_NEEDED = ("click", "rich")


def main() -> int:
    """Run the command line of this process and return its exit code."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        print(
            f"etcd-actions: the command line needs {' and '.join(missing)}: "
            "pip install 'etcd-actions[cli]'",
            file=sys.stderr,
        )
        return 2
    from etcd_actions.cli.commands import invoke  # noqa: PLC0415 (needs the extra)

    return invoke()
