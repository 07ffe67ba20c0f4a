"""How the environments of images are made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How environments of images are made. Times are in seconds.

    Attributes:
        directory: Where they are.
        python: The interpreter of the environment that they stand on.
        lacking: What becomes of an image of which something cannot be had: it is refused, or
            used without that.
        within: How long one may take to be made.
        most_bytes: How much disk all of them may take; the ones unused for longest go first.
        keep: After so long without use one is removed.
    """

    directory: Path
    python: Path
    lacking: Literal["check", "ignore"] = "check"
    within: float = 900.0
    most_bytes: int = 10 * 1024**3
    keep: float = 30 * 24 * 3600.0
