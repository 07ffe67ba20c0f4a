"""The attacker as a process: python -m tests.support.hostile_main

A line of standard input names an attack and its target, as JSON. A line tells what was observed
once the worst is reached; then it is held until the next line comes, and a second line tells
that it is over.
"""

from __future__ import annotations

import json
import resource
import sys
import traceback
from typing import Any

from tests.support import (
    hostile_calls,
    hostile_connections,
    hostile_front,
    hostile_http1,
    hostile_http2,
)
from tests.support.hostile_registry import ATTACKS
from tests.support.hostile_wire import Target

MODULES = (hostile_calls, hostile_connections, hostile_front, hostile_http1, hostile_http2)


def _tell(**what: Any) -> None:
    sys.stdout.write(json.dumps(what, default=str) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Attack on demand, until standard input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for line in sys.stdin:
        order = json.loads(line)
        target = Target(**order["target"])
        try:
            with ATTACKS[order["attack"]].make(target) as observed:
                _tell(stage="held", observed=observed)
                sys.stdin.readline()
        except Exception:
            # The test fails by it.
            _tell(stage="failed", error=traceback.format_exc())
        else:
            _tell(stage="over")


if __name__ == "__main__":
    main()
