"""Cached outputs: stored apart from those of their run, and copied to other actions.

Small outputs are in the entry in etcd. Larger ones are in a file of the state directory, named by
their digest; an executor without that file reads the outputs of the run. Each read verifies the
digest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from flyteidl2.task.common_pb2 import Outputs
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions._internal.untrusted_files import (
    UnusableFile,
    local_path,
    replace_file,
)
from etcd_actions.catalog import Entry, digest_of
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.outcome import OUTPUTS_FILE, clear
from etcd_actions.executor.attempts.output_directories import take
from etcd_actions.executor.attempts.output_files import Outputs as OutputsLocation
from etcd_actions.executor.attempts.output_files import read_file, write_file

if TYPE_CHECKING:
    from flyteidl2.core.literals_pb2 import Literal

CACHE: Final = "cache"
"""The directory of the state directory with the outputs that are too large for etcd."""

MOST_IN_ETCD: Final = 8 * 1024
"""The most bytes of outputs in an entry."""
MOST_OF_OUTPUTS: Final = 64 * 1024 * 1024
"""The most bytes of cached outputs."""


class Stale(Exception):
    """A cached result cannot be used any more."""


def read_outputs(outputs: OutputsLocation) -> bytes | None:
    """The outputs of an attempt; None if it has none.

    Raises:
        UnusableFile: They are not in a regular file, or larger than `MOST_OF_OUTPUTS`.
        OSError: They cannot be read.
    """
    return read_file(outputs, OUTPUTS_FILE, limit=MOST_OF_OUTPUTS)


def store(state_dir: Path, data: bytes) -> None:
    """Store outputs that are too large for etcd.

    Raises:
        OSError: They cannot be written.
    """
    directory = state_dir / CACHE
    directory.mkdir(mode=0o700, exist_ok=True)
    replace_file(directory / _name(digest_of(data)), data)


def fetch(state_dir: Path, entry: Entry, *, declares_outputs: bool) -> bytes | None:
    """The outputs of a cached result; None if the task has none.

    Raises:
        Stale: They, or a file that they name, were removed or changed.
        OSError: They cannot be read now.
    """
    if not entry.digest:
        if declares_outputs:
            raise Stale("the task has outputs, and the result has none")
        return None
    data = entry.outputs
    if data is None:
        data = _large(state_dir, entry)
    elif digest_of(data) != entry.digest:
        raise Stale("its bytes are not those that were written")
    try:
        outputs = Outputs.FromString(data)
    except BadMessage as error:
        raise Stale(f"it is not a message Outputs: {error}") from None
    for uri in _uris(each.value for each in outputs.literals):
        path = local_path(uri)
        # The task reads files of other machines itself.
        if path is not None and not path.exists():
            raise Stale(f"{path}, which it names, is gone")
    return data


def write_outputs(place: AttemptDirectory, outputs: OutputsLocation, data: bytes | None) -> bool:
    """Write outputs in the place of an attempt that is not started.

    Args:
        place: The attempt.
        outputs: The directory of its outputs.
        data: The outputs, if any.

    Returns:
        False if another living attempt has that directory; then nothing was done.

    Raises:
        OSError: They cannot be written.
    """
    if take(place, outputs) is not None:
        return False
    clear(outputs)
    if data is not None:
        write_file(outputs, OUTPUTS_FILE, data)
    return True


def sweep_cache(state_dir: Path, keep: float) -> None:
    """Remove outputs whose entries in etcd, which are kept for ``keep`` seconds, have expired.

    Outputs are kept for one and a half times as long, since an entry may outlive ``keep``: entries
    share leases, and a renewal of one extends all of its lease.
    """
    before = time.time() - 1.5 * keep
    with suppress(FileNotFoundError):
        for each in (state_dir / CACHE).iterdir():
            with suppress(OSError):
                if each.lstat().st_mtime < before:
                    each.unlink()


def _large(state_dir: Path, entry: Entry) -> bytes:
    kept, name = state_dir / CACHE, _name(entry.digest)
    left = local_path(entry.output_uri) or entry.output_uri
    for directory, file in ((kept, name), (left, OUTPUTS_FILE)):
        with suppress(UnusableFile):
            data = read_file(directory, file, limit=MOST_OF_OUTPUTS)
            if data is not None and digest_of(data) == entry.digest:
                if directory == kept:
                    os.utime(kept / name)
                return data
    raise Stale("its outputs are gone, or were changed")


def _name(digest: str) -> str:
    # An entry may have any text: only hexadecimal digits name a file.
    return "".join(each for each in digest.removeprefix("sha256:") if each in "0123456789abcdef")


def _uris(literals: Iterator[Literal]) -> Iterator[str]:
    """The URIs of the files, directories and tables in literals."""
    for literal in literals:
        kind = literal.WhichOneof("value")
        if kind == "collection":
            yield from _uris(iter(literal.collection.literals))
        elif kind == "map":
            yield from _uris(iter(literal.map.literals.values()))
        elif kind == "offloaded_metadata":
            yield literal.offloaded_metadata.uri
        elif kind == "scalar":
            scalar = literal.scalar
            if scalar.HasField("union"):
                yield from _uris(iter((scalar.union.value,)))
            for field in ("blob", "structured_dataset", "schema"):
                if scalar.HasField(field):
                    yield getattr(scalar, field).uri
