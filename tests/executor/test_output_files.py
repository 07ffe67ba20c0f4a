"""The files of outputs in a directory and at a URL are read, written and removed alike."""

from __future__ import annotations

import errno
import secrets
from pathlib import Path

import fsspec
import pytest

from etcd_actions._internal.untrusted_files import UnusableFile
from etcd_actions.executor.attempts.output_files import (
    Outputs,
    has_file,
    is_url,
    read_file,
    remove_file,
    write_file,
)
from tests.support.table import table


@pytest.fixture(params=["directory", "URL"])
def outputs(request: pytest.FixtureRequest, tmp_path: Path) -> Outputs:
    if request.param == "directory":
        return tmp_path / "not" / "made"
    return f"memory://bucket/{secrets.token_hex(4)}/a0/1"


def test_a_file_is_what_was_written_last(outputs: Outputs) -> None:
    assert not has_file(outputs, "error.pb")
    assert read_file(outputs, "error.pb", limit=10) is None
    remove_file(outputs, "error.pb")
    write_file(outputs, "error.pb", b"one")
    write_file(outputs, "error.pb", b"two and")
    assert has_file(outputs, "error.pb")
    assert not has_file(outputs, "outputs.pb")
    assert read_file(outputs, "error.pb", limit=7) == b"two and"
    with pytest.raises(UnusableFile, match="larger than 6 bytes"):
        read_file(outputs, "error.pb", limit=6)
    remove_file(outputs, "error.pb")
    assert not has_file(outputs, "error.pb")


@table(
    ("text", "expected"),
    [
        ("s3://bucket/x", True),
        ("memory://x", True),
        ("/a/b", False),
        ("file:///a/b", False),
        ("local://a/b", False),
        ("simplecache::file://a", False),
        ("zip://a::/etc/passwd", False),
        ("s3:///x", False),
        ("", False),
        ("a/b", False),
    ],
)
def test_only_the_url_of_another_machine_is_one(text: str, expected: bool) -> None:
    assert is_url(text) is expected
    if not expected:
        with pytest.raises(UnusableFile, match="is neither a path nor a URL"):
            has_file(text, "outputs.pb")


def test_a_url_without_a_file_system_names_the_package() -> None:
    with pytest.raises(UnusableFile, match=r"pip install etcd-actions\[blobs\]"):
        has_file("nosuchscheme://bucket/x", "outputs.pb")


def test_a_store_that_does_not_answer_may_answer_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its client raises: no outcome is decided by it."""
    store = type(fsspec.filesystem("memory"))

    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("botocore has lost its way")

    for name in ("isfile", "pipe_file"):
        monkeypatch.setattr(store, name, fail)
    with pytest.raises(OSError, match="botocore has lost its way") as raised:
        read_file("memory://bucket/x", "error.pb", limit=10)
    assert raised.value.errno == errno.EAGAIN
    with pytest.raises(OSError, match="botocore has lost its way") as raised:
        write_file("memory://bucket/x", "error.pb", b"")
    assert raised.value.errno == errno.EAGAIN
