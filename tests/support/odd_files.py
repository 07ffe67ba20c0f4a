"""What may be at a path in place of a regular file."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

Make = Callable[[Path], None]


def make_socket(path: Path) -> None:
    # The address of a socket is short: its directory is entered.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(path.name)
    finally:
        os.chdir(before)


def make_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("only root makes devices")


KINDS: dict[str, tuple[Make, str]] = {
    "fifo": (os.mkfifo, "a FIFO"),
    "directory": (Path.mkdir, "a directory"),
    "link": (lambda path: path.symlink_to("/etc/passwd"), "a symbolic link"),
    "dangling link": (lambda path: path.symlink_to("/nowhere/at/all"), "a symbolic link"),
    "link to itself": (lambda path: path.symlink_to(path.name), "a symbolic link"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "a symbolic link"),
    "socket": (make_socket, "a socket"),
    "device": (make_device, "a character device"),
}
