"""A log that cannot be written costs its lines and nothing else."""

import fcntl
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog

from etcd_actions._internal.containment import Containment
from etcd_actions.cli.log_output import configure_logs, count_failed_lines
from etcd_actions.cli.stderr import LineWriter, TolerantStderr

LINE = b"x" * 99 + b"\n"
needs_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        try:
            os.close(end)
        except OSError:
            # The test has closed it.
            continue


def read(descriptor: int) -> bytes:
    """All that is in the pipe now."""
    os.set_blocking(descriptor, False)
    taken = b""
    try:
        while piece := os.read(descriptor, 1 << 20):
            taken += piece
    except BlockingIOError:
        return taken
    return taken


def test_a_reader_that_stalls_stalls_nobody(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    lines = LineWriter(writer)
    for _ in range(2_000):
        lines.write(LINE)
    assert 0 < lines.dropped < 2_000
    assert read(reader) == LINE * (2_000 - lines.dropped)
    dropped = lines.dropped
    lines.write(LINE)
    assert lines.dropped == dropped
    assert read(reader) == LINE


def test_a_line_that_was_begun_is_finished_before_the_next_one(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    size = 8 * 4096
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, size)
    lines = LineWriter(writer)
    long = b"y" * (1 << 20) + b"\n"
    lines.write(long)
    lines.write(LINE)
    taken = b""
    while len(taken) < len(long):
        taken += read(reader)
        lines.write(LINE)
    taken += read(reader)
    whole, *rest = taken.splitlines(keepends=True)
    assert whole == long
    assert set(rest) <= {LINE}


def test_a_reader_that_is_gone_is_counted(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.close(reader)
    lines = LineWriter(writer)
    lines.write(LINE)
    assert lines.dropped == 1


def test_a_closed_descriptor_is_counted() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    lines = LineWriter(writer)
    lines.write(LINE)
    assert lines.dropped == 1


@needs_full
def test_a_full_disk_is_counted() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        lines = LineWriter(descriptor)
        lines.write(LINE)
        assert lines.dropped == 1
    finally:
        os.close(descriptor)


def test_a_file_size_limit_tears_no_later_line(tmp_path: Path) -> None:
    code = (
        "import os, resource, signal, sys\n"
        "from etcd_actions.cli.stderr import LineWriter\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150, resource.RLIM_INFINITY))\n"
        "lines = LineWriter(os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND))\n"
        "for _ in range(3): lines.write(b'x' * 99 + b'\\n')\n"
        "assert lines.dropped == 2, lines.dropped\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))\n"
        "lines.write(b'z\\n')\n"
    )
    file = tmp_path / "log"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code, str(file)]) == 0
    assert file.read_bytes().endswith(b"\nz\n")


@contextmanager
def logging(
    monkeypatch: pytest.MonkeyPatch, form: str = "json"
) -> Iterator[Callable[[], list[bytes]]]:
    """Send the log into a pipe; gives what reads its lines."""
    reader, writer = os.pipe()
    before = structlog.get_config()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", TolerantStderr(writer))
        configure_logs("debug", form)
        try:
            yield lambda: read(reader).splitlines()
        finally:
            structlog.configure(**before)
            os.close(reader)
            os.close(writer)


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class Deep(dict[str, Any]):
    def items(self) -> Any:
        raise RecursionError


def test_whatever_a_line_holds_it_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    containment = Containment()
    count_failed_lines(containment)
    nested: list[Any] = []
    nested.append(nested)
    with logging(monkeypatch) as logged:
        log = structlog.get_logger()
        for value in (
            Unshowable(),
            [Unshowable()],
            Deep(x=1),
            nested,
            "\ud800",
            b"\xff",
            10**5_000,
            float("nan"),
            {1: {2: {3: {4: {5: {6: 7}}}}}},
            {Unshowable(): 1},
            "x" * (1 << 22),
            b"x" * (1 << 22),
            RuntimeError(Unshowable()),
        ):
            log.info("told", value=value, other=1)
            (line,) = map(json.loads, logged())
            assert (line["event"], line["other"], line["level"]) == ("told", 1, "info")
            assert len(json.dumps(line)) < 10_000
        log.info("x" * (1 << 22), **{f"field{number}": number for number in range(1_000)})
        (line,) = map(json.loads, logged())
        assert line["event"].startswith("xxx")
        assert len(json.dumps(line)) < 10_000
        assert containment.failures["log_line"] >= 4
        count_failed_lines(Containment())


def test_an_exception_that_cannot_be_shown_costs_no_more_than_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    with logging(monkeypatch) as logged:
        log = structlog.get_logger()
        log.error("failed", exc_info=Nasty())
        log.error("failed", exc_info=ValueError("\ud800" * 10))
        log.error("failed", exc_info=ValueError("x" * (1 << 22)))
        lines = [json.loads(line) for line in logged()]
    assert [line["event"] for line in lines] == ["failed"] * 3
    assert all(len(json.dumps(line)) < 25_000 for line in lines)


def test_people_see_a_line_that_holds_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with logging(monkeypatch, "console") as logged:
        structlog.get_logger().info("told", value=Unshowable(), text="\ud800", data=b"\xff")
        assert b"told" in b"".join(logged())
