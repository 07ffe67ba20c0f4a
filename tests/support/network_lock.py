"""Changes of this machine's network, and tests that must not see one.

When an address of the machine changes, Chromium aborts its requests. The processes that run tests
at the same time share the lock.
"""

from __future__ import annotations

import fcntl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def network_lock(*, exclusive: bool) -> Iterator[None]:
    """Hold the lock; entering blocks until it is free.

    Args:
        exclusive: For a change of the network; otherwise for a test that must not see one.
    """
    path = Path(tempfile.gettempdir()) / "etcd-actions-tests.network"
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
