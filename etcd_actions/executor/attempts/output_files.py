"""The files of an attempt's outputs: in a directory of this machine, or at a URL.

The functions block: call them in threads, with a time limit.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

from etcd_actions._internal.untrusted_files import (
    UnusableFile,
    clear_away,
    is_regular,
    read_regular,
    replace_file,
)

Outputs: TypeAlias = Path | str
"""A directory of this machine; or the URL of a directory that fsspec knows, such as ``s3://…``."""

# Characters of a URL or a reason in a message.
_MOST_REASON: Final = 500
_URL: Final = re.compile(r"([a-z][a-z0-9+.-]*)://[^/]")
_OF_THIS_MACHINE: Final = frozenset({"file", "local"})


def is_url(text: str) -> bool:
    """Whether a text is the URL of a place on another machine."""
    found = _URL.match(text)
    # Two colons would chain file systems, so that the last one may be of this machine.
    return found is not None and found[1] not in _OF_THIS_MACHINE and "::" not in text


def read_file(outputs: Outputs, name: str, *, limit: int) -> bytes | None:
    """The contents of a file; None if it does not exist.

    Raises:
        UnusableFile: It is not a regular file, or is larger than ``limit`` bytes.
        OSError: It cannot be read now.
    """
    if isinstance(outputs, Path):
        try:
            return read_regular(outputs / name, limit=limit)
        except (FileNotFoundError, NotADirectoryError):
            return None
    if not has_file(outputs, name):
        return None
    with _at(outputs) as (files, path):
        data: bytes = files.cat_file(f"{path}/{name}", start=0, end=limit + 1)
    if len(data) > limit:
        raise UnusableFile(f"{outputs}/{name} is larger than {limit} bytes")
    return data


def has_file(outputs: Outputs, name: str) -> bool:
    """Whether there is a regular file; raises as :func:`read_file`."""
    if isinstance(outputs, Path):
        return is_regular(outputs / name)
    with _at(outputs) as (files, path):
        return bool(files.isfile(f"{path}/{name}"))


def write_file(outputs: Outputs, name: str, data: bytes) -> None:
    """Write a file in one step.

    Raises:
        OSError: It cannot be written.
    """
    if isinstance(outputs, Path):
        outputs.mkdir(parents=True, exist_ok=True)
        replace_file(outputs / name, data)
        return
    with _at(outputs) as (files, path):
        files.pipe_file(f"{path}/{name}", data)


def remove_file(outputs: Outputs, name: str) -> None:
    """Remove a file. If the name is that of a directory on this machine, rename the directory.

    Raises:
        OSError: It cannot be removed.
    """
    if isinstance(outputs, Path):
        clear_away(outputs / name)
    elif has_file(outputs, name):
        with _at(outputs) as (files, path):
            files.rm_file(f"{path}/{name}")


@contextmanager
def _at(url: str) -> Iterator[tuple[Any, str]]:
    """The file system of a URL, and its path there. Its client may raise any exception."""
    if not is_url(url):
        raise UnusableFile(f"{url[:_MOST_REASON]!r} is neither a path nor a URL")
    try:
        from fsspec.core import url_to_fs  # noqa: PLC0415 (an extra)

        files, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UnusableFile(
            f"{url[:_MOST_REASON]} cannot be used: {error}: pip install etcd-actions[blobs], and "
            "fsspec's package for such a URL, s3fs for s3://"
        ) from None
    try:
        # The cache of listings may be stale.
        files.invalidate_cache()
        yield files, str(path).rstrip("/")
    except Exception as error:
        reason = f"{url}: {type(error).__name__}: {error}"[:_MOST_REASON]
        # EAGAIN: the caller retries, see `lacks_resources`.
        raise OSError(errno.EAGAIN, reason) from error
