"""The command line, ``etcd-actions``."""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

from etcd_actions.cli.secret_arguments import hide_secret_arguments

_NEEDED = ("click", "msgpack", "rich")


def main() -> int:
    """Run the command line of this process and return its exit code."""
    hide_secret_arguments()
    # gRPC writes each failed handshake to stderr, beside the error that says the same.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
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
