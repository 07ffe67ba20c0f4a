"""Files that the operator names: settings, passwords, tokens, certificates, requests.

A path can name any kind of file: a directory, an endless device, a pipe without a writer. A file is
read to its end, up to a limit, and each wait is bounded. A failure is an OSError, whose
``strerror`` is the reason for people.
"""

from __future__ import annotations

import codecs
import errno
import os
import select
import stat
import time
from pathlib import Path
from typing import Final

# Seconds of silence after which a pipe counts as one without a writer.
_PATIENCE: Final = 30.0
_CHUNK: Final = 256 * 1024

# UTF-32 is first: its mark begins with that of UTF-16.
_MARKS: Final = (
    (codecs.BOM_UTF32_LE, "UTF-32"),
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_OTHERS: Final = (
    (stat.S_ISDIR, errno.EISDIR, "Is a directory"),
    (stat.S_ISFIFO, errno.EINVAL, "it is a pipe: give a regular file"),
    (stat.S_ISSOCK, errno.EINVAL, "it is a socket: give a regular file"),
    (stat.S_ISCHR, errno.EINVAL, "it is a device: give a regular file"),
    (stat.S_ISBLK, errno.EINVAL, "it is a device: give a regular file"),
)


def read_named_file(
    path: str | Path, most: int, *, pipes: bool = False, patience: float = _PATIENCE
) -> bytes:
    """Read all of a file.

    Args:
        path: The file; links are followed.
        most: The most bytes that it may have.
        pipes: Whether it may be a pipe, such as a shell's ``<(command)``, or a terminal.
        patience: The longest silence of a pipe, in seconds.

    Raises:
        OSError: It cannot be read, is of another kind, too large or silent for too long;
            ``strerror`` has the reason and the remedy.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except ValueError:
        raise OSError(errno.EINVAL, "a path cannot hold a NUL character") from None
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise OSError(errno.ENXIO, "it is a socket: give a regular file") from None
        raise
    try:
        mode = os.fstat(descriptor).st_mode
        streams = pipes and (stat.S_ISFIFO(mode) or stat.S_ISCHR(mode))
        if not stat.S_ISREG(mode) and not streams:
            raise _of_another_kind(mode)
        return _read_all(descriptor, most, patience)
    finally:
        os.close(descriptor)


def text_of(data: bytes) -> str:
    """The text of a file in UTF-8, without the mark that some editors put before it.

    Raises:
        ValueError: It is in another encoding; the message has the remedy.
    """
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            raise ValueError(f"it is {encoding}: save it as UTF-8")
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        offset = len(data) - len(error.object) + error.start
        raise ValueError(
            f"not UTF-8: byte 0x{data[offset]:02x} at offset {offset}: save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"there is a NUL byte at offset {data.index(0)}: it is not text, or it is UTF-16: "
            "save it as UTF-8"
        )
    return text


def _of_another_kind(mode: int) -> OSError:
    number, reason = next(
        ((number, reason) for fits, number, reason in _OTHERS if fits(mode)),
        (errno.EINVAL, "it is not a regular file"),
    )
    return OSError(number, reason)


def _read_all(descriptor: int, most: int, patience: float) -> bytes:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    pieces: list[bytes] = []
    size = 0
    give_up = time.monotonic() + patience
    is_pipe = stat.S_ISFIFO(os.fstat(descriptor).st_mode)
    while True:
        try:
            piece = os.read(descriptor, min(_CHUNK, most + 1 - size))
        except BlockingIOError:
            piece = None
        if piece:
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise OSError(errno.EFBIG, f"it has more than {size_text(most)}")
            give_up = time.monotonic() + patience
            continue
        # A read is empty, too, while no process has opened the pipe for writing.
        if piece is not None and (pieces or not is_pipe or _is_hung_up(poll)):
            return b"".join(pieces)
        left = give_up - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise OSError(
                errno.ETIMEDOUT, f"nothing was written to this pipe for {patience:g} seconds"
            )


def _is_hung_up(poll: select.poll) -> bool:
    """Whether a process had opened a pipe for writing, and has closed it."""
    return any(events & select.POLLHUP for _, events in poll.poll(0))


def size_text(size: int) -> str:
    """A number of bytes for people."""
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} bytes"
