"""Removes directories that tasks or installers have filled."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Final

REMOVED: Final = ".removed-"
"""The prefix of the names of directories that are being removed."""

# Seconds for one of the programs that remove a directory.
_WITHIN: Final = 600.0


def remove(directory: Path) -> None:
    """Remove a directory with any contents; it is renamed first, so that no reader finds a part.

    Raises:
        OSError, SubprocessError: It cannot be removed.
    """
    if not directory.name.startswith(REMOVED):
        name = f"{REMOVED}{directory.name}-{secrets.token_hex(4)}"
        directory = directory.rename(directory.with_name(name))
    try:
        shutil.rmtree(directory)
    except (OSError, RecursionError):
        # It has directories that cannot be read, or that are nested too deeply.
        for command in (("chmod", "-R", "u+rwX"), ("rm", "-rf")):
            subprocess.run(
                [*command, "--", str(directory)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_WITHIN,
                check=command[0] == "rm",
            )
