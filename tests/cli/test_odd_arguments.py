"""Arguments, variables, histories and stored names that nobody meant: told clearly, and bounded."""

import base64
import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import structlog

from etcd_actions._internal.quoting import printable, quoted
from etcd_actions.change_history import history
from etcd_actions.change_history.history import Destination, HistoryStep, reader_of
from etcd_actions.cli import command_line
from etcd_actions.cli.commands.completion import check_completion_request
from etcd_actions.cli.commands.mutations import literal_of
from etcd_actions.cli.exit_codes import print_message, report
from etcd_actions.cli.formats.run_progress import ActionState, ProgressPrinter
from etcd_actions.cli.formats.standard_output import (
    check_input_open,
    chosen_format,
    standard_output,
)
from etcd_actions.cli.formats.table import Cell, Terminal
from etcd_actions.cli.secret_arguments import hide_secret_arguments
from etcd_actions.codecs import magic
from etcd_actions.config import SETTINGS, Environment, Flags, Setting, resolve, values
from etcd_actions.config.settings import DATA_DIR, ENDPOINTS, GRACE, LISTEN, OTLP_ENDPOINT
from etcd_actions.doctor import Finding, Subject, examination, objects
from etcd_actions.errors import ConfigError, InputError
from etcd_actions.etcd import ConnectionSettings
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.model import Phase
from tests.cli.command import finish, running
from tests.support.table import table


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--run", "\udcff"], r"'--run': '\\udcff' is not UTF-8"),
        (["abort", "p/d/r/\udcff"], r"'ACTION': 'p/d/r/\\udcff' is not UTF-8"),
        (["get", "a", "\udcff"], r"'ACTION\.\.\.': '\\udcff' is not UTF-8"),
        (["abort", "p/d/r/a", "--reason", "\udcff"], "'--reason': .* is not UTF-8"),
        (["list", "--namespace", "\udcff"], "--namespace: it is not UTF-8"),
        (["list", "\udcff"], r"\\udcff"),
        (["list", "--\x1b[2J"], r"--\\x1b\[2J"),
        (["\x1b[2J"], r"\\x1b\[2J"),
        (["replay", "f", "--rate", "nan"], "'--rate': 'nan' is not a number a second"),
        (["replay", "f", "--rate", "inf"], "'--rate': 'inf' is not a number a second"),
        (["replay", "f", "--rate", "1e400"], "'--rate': '1e400' is not a number a second"),
        (["replay", "f", "--rate", "1e-99"], "'--rate': '1e-99' is not a number a second"),
        (["replay", "f", "--rate", "\u0663"], "'--rate': '\u0663' is not a number a second"),
        (["replay", "f", "--rate", "0"], "'--rate': '0' is not a number a second"),
        (["list", "--limit", "1_0"], "'--limit': '1_0' is not a number from 1"),
        (["list", "--limit", "\u0663"], "'--limit': '\u0663' is not a number from 1"),
        (["list", "--limit", "9" * 5000], r"\.\.\. \(5000 characters\) is not a number from 1"),
        (["list", "--limit", "0"], "'--limit': '0' is not a number from 1"),
        (["status", "p/d/r/a", "RUNNING", "--attempt", "4294967296"], "to 4294967295"),
        (["runs", "--newer-than", "x"], "'--newer-than': 'x' is not a valid duration such"),
        (["runs", "--older-than", "0s"], "'--older-than': '0s' leaves no time"),
        (["gc", "--older-than", "30"], "'--older-than': '30' is not an age"),
        (["list", "--dial-timeout", "9" * 100_000], r"--dial-timeout: '9+'\.\.\. \(100000 char"),
        (["list", "--dial-timeout", ""], "--dial-timeout: it is empty"),
        (["list", "--endpoints", "[::1"], r"--endpoints: endpoint '\[::1'"),
        (["run", "--listen", "a" * 300 + ":80"], r"--listen: .* is not a valid name of a host"),
        (["run", "--data-dir", "a" * 300], r"--data-dir: .*File name too long"),
    ],
)
def test_an_argument_that_is_none(
    arguments: list[str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    logs_as_before: None,
) -> None:
    """Exit code 2, and one line that names it."""
    monkeypatch.setattr(sys, "argv", ["etcd-actions", *arguments])
    assert command_line.invoke() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()
    assert len(line) < 600
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(line)


@table("text", ["9" * 100_000, "9" * 100_000 + "x", "1." * 50_000, "1h" * 50_000])
@table("parse", [values.duration, values.seconds, values.size, values.rate])
def test_digits_without_an_end_are_refused_at_once(text: str, parse: object) -> None:
    """The parser of durations took time with the cube of their number."""
    assert callable(parse)
    signal.alarm(20)
    try:
        with pytest.raises(ValueError, match=r"characters\)") as raised:
            parse(text)
    finally:
        signal.alarm(0)
    assert len(str(raised.value)) < 300


@table(
    "text",
    [
        "a b:1",
        "a\n:1",
        "a\0b:1",
        "127.0.0.1:\u0663",
        "127.0.0.1:" + "9" * 5000,
        "a..b:1",
        "x" * 300,
        "[::1]]:1",
        "[zonk]:1",
        "[fe80::1%\x1b]:1",
        "http:///",
        "https://:2379",
        "gopher://a:1",
        "a:1?x",
        "-" * 5000 + ":1",
    ],
)
def test_an_endpoint_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="endpoint") as raised:
        parse_endpoints(text)
    assert len(str(raised.value)) < 400
    assert str(raised.value).isprintable()


@table(
    ("setting", "text"),
    [
        (ENDPOINTS, "\udcff:1"),
        (GRACE, "\u0663s"),
        (LISTEN, "a\0b:1"),
        (LISTEN, "[zonk]:1"),
        (OTLP_ENDPOINT, "http://[::1"),
        (OTLP_ENDPOINT, "http://a:99999"),
        (OTLP_ENDPOINT, "http://\u00b3..b"),
        (DATA_DIR, "/etc/passwd/x"),
    ],
)
def test_a_variable_that_is_none(setting: Setting[object], text: str) -> None:
    (error,) = resolve([setting], [Environment({setting.variable: text})]).errors
    assert str(error).startswith(f"{setting.variable}: ")


def test_each_path_may_hold_no_nul() -> None:
    """A file of settings can hold one, and no function of the system takes it."""
    paths = [each for each in SETTINGS if each.kind.metavar in {"FILE", "DIRECTORY"}]
    assert len(paths) > 10
    for setting in paths:
        (error,) = resolve([setting], [Flags({setting.name: "a\0b"})]).errors
        assert "NUL" in str(error)


@table(
    ("text", "field"),
    [
        ("1_000", "string_value"),
        ("\u0663", "string_value"),
        ("nan", "string_value"),
        ("Infinity", "string_value"),
        (" 5", "string_value"),
        ("-5", "integer"),
        ("5.5", "float_value"),
        ("1e3", "float_value"),
        ("TRUE", "boolean"),
    ],
)
def test_what_a_signal_looks_like(text: str, field: str) -> None:
    assert literal_of(text, "auto").scalar.primitive.HasField(field)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (str(10**30), "auto"),
        ("9" * 5000, "auto"),
        ("1e400", "auto"),
        ("\u0663", "int"),
        ("1_0", "float"),
        ("\udcff", "str"),
    ],
)
def test_a_signal_that_is_none(text: str, kind: str) -> None:
    with pytest.raises(ConfigError, match="give another value, or another --type") as raised:
        literal_of(text, kind)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("text", ["garbage", "{}", "[1]", "[" * 100_000, '"--password"'])
def test_a_variable_of_the_program_itself(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ETCD_ACTIONS_HIDDEN_ARGUMENTS", text)
    with pytest.raises(SystemExit) as ended:
        hide_secret_arguments()
    assert ended.value.code == 2
    assert "ETCD_ACTIONS_HIDDEN_ARGUMENTS" in capsys.readouterr().err


@pytest.mark.parametrize("words", [{}, {"COMP_WORDS": "a"}, {"COMP_WORDS": "a", "COMP_CWORD": "x"}])
def test_a_completion_that_says_half(words: dict[str, str]) -> None:
    variables = {"_ETCD_ACTIONS_COMPLETE": "bash_complete", **words}
    with pytest.raises(ConfigError, match=r"^_ETCD_ACTIONS_COMPLETE .* unset it"):
        check_completion_request("etcd-actions", variables)


@pytest.mark.parametrize(
    "columns", ["", "0", "1", "-5", "\u00b3", "9" * 5000, "zonk", "99999999999"]
)
def test_a_terminal_of_any_width(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("LINES", columns)
    rendered = Terminal(io.StringIO()).render([[Cell("\u540d" * 400)]])
    assert rendered.endswith(b"\n")


def test_what_is_said_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_message("a\n\tb\x1b[2J\u202e\u2028" + "x" * 100_000)
    line = capsys.readouterr().err
    assert line.startswith(r"etcd-actions: a b\x1b[2J\u202e\u2028xxx")
    assert line[:-1].isprintable()
    assert len(line) < 10_000


def test_quoted() -> None:
    deep: list[object] = []
    # From 3.14 on the stack is the limit, and no number of calls.
    for _ in range(500_000):
        deep = [deep]
    assert quoted(deep) == "<list>"
    assert quoted("a" * 81) == f"'{'a' * 80}'... (81 characters)"
    assert quoted(b"a" * 81).endswith("(81 bytes)")
    assert quoted(int("f" * 5000, 16)) == "<int>"
    assert printable("h\u00f6h\x07\u202e") == rb"h\u00f6h".decode("unicode_escape") + r"\x07\u202e"


# --- histories --------------------------------------------------------------------------


def steps(content: bytes, namespace: str | None = None) -> list[HistoryStep]:
    reader = reader_of("file", content, Destination(b"/p/", namespace))
    return [*reader.feed(content), *reader.finish()]


def refused(content: bytes, namespace: str | None = None) -> str:
    with pytest.raises(InputError) as raised:
        steps(content, namespace)
    assert report(raised.value) == 6
    assert len(str(raised.value)) < 600
    return str(raised.value)


@table(
    ("content", "told"),
    [
        (b'{"type":"PUT","key":"a/b","x":' + b"[" * 1_000_000, "file:1: it is nested too deeply"),
        (b'\n{"type":"' + b"x" * 1_000_000 + b'","key":"a/b"}', "file:2: Invalid enum value"),
        (b'{"type":"DELETE","key":"' + b"x" * 1_000_000 + b'"}', "file:1: 'xxx"),
        (b'{"type":"DELETE","key":NaN}', "file:1: "),
        (b'{"type":"PUT","key":"a/b","value":"***"}', "file:1: Invalid base64"),
        ('{"type":"DELETE","key":"a/b"}'.encode("utf-16"), "file:1: it is UTF-16"),
        (b"\xff\xff", "file:1: "),
        (b"\0" * 100, "file:1: "),
    ],
)
def test_a_line_that_is_none(content: bytes, told: str) -> None:
    assert refused(content).startswith(told)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_lines_of_any_editor(newline: bytes) -> None:
    lines = [b'\xef\xbb\xbf{"type":"DELETE","key":"a/b"}', b"", b'{"type":"DELETE","key":"c/d"}']
    content = newline.join(lines)
    found = steps(content)
    assert [step.event.key for step in found] == [b"/p/a/b", b"/p/c/d"]
    assert found[-1].offset == len(content)


def test_a_line_without_an_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "_MOST_LINE_BYTES", 1 << 20)
    reader = reader_of("file", b" ", Destination(b"/p/"))
    assert list(reader.feed(b"\n" + b" " * (1 << 20))) == []
    with pytest.raises(InputError, match=r"^file:2: the line has more than 1 MiB"):
        list(reader.feed(b" "))


@table(
    "bomb",
    [
        b"\xdd" + struct.pack(">I", 60_000_000),
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\xc6\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\x91" * 5000,
    ],
)
def test_an_entry_that_declares_more_than_there_is(bomb: bytes) -> None:
    """What it declares to hold is not reserved."""
    assert refused(b"\x81\xa1a" + bomb).startswith("file: offset 0: ")


@table("version", [2, 99, True, 1.0, "1", None, [], 2**63])
def test_a_record_of_another_version(version: object) -> None:
    header = {"format": "etcd-actions-record", "version": version, "prefix": b"/p/"}
    assert "version" in refused(msgpack.packb(header))


def test_an_object_that_cannot_be_moved_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the other namespace it would be too large."""
    value = b'{"metadata":{"namespace":"a"}}'
    monkeypatch.setattr(magic, "MAX_SIZE", len(value) + 10)
    line = json.dumps(
        {"type": "PUT", "key": "a/b", "value": base64.b64encode(value).decode()}
    ).encode()
    assert refused(line, "b" * 200).startswith("file:1: it cannot be put into namespace bbb")


# --- what a service, and etcd, say ------------------------------------------------------


def test_a_state_cannot_drive_the_terminal() -> None:
    written: list[bytes] = []
    show = ProgressPrinter(written.append, "table")
    show.state(ActionState("a\x1b[2J", Phase.FAILED, 1, "E: \x1b]0;x\x07\r\nmore", "\u202e"))
    (line,) = written
    assert line[:-1].decode().isprintable()


def test_a_result_that_is_no_unicode() -> None:
    written: list[bytes] = []
    for form in ("jsonl", "table"):
        ProgressPrinter(written.append, form).result({"a": "\ud800", "n": 2**70})
    assert json.loads(written[0]) == {"result": {"a": "\ud800", "n": 2**70}}
    assert written[1].startswith(b"result: ")


def test_a_remedy_holds_no_command_of_a_key() -> None:
    """Remedies are copied into shells."""
    finding = objects.UNDECODABLE.found("seen", key="a'; rm -rf ~; '<key>")
    assert r"etcdctl get 'a'\''; rm -rf ~; '\''<key>' --print" in finding.remedy


async def test_a_check_of_doctor_that_fails_in_any_way() -> None:
    """It is a finding, and the others go on."""

    settings = ConnectionSettings(endpoints=parse_endpoints("127.0.0.1:1"))
    looked = examination._Examination(Subject(settings=settings, prefix=b"/p/"))

    async def check() -> list[Finding]:
        raise RecursionError("maximum recursion depth exceeded")

    nothing: list[Finding] = []
    assert await looked._bounded("values", check, nothing) == []
    (finding,) = looked.findings
    assert finding.id == "check-failed"
    assert finding.seen.startswith("values: unexpected RecursionError: maximum")


# --- streams ----------------------------------------------------------------------------


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's streams are None then, and the descriptor goes to whatever is opened next."""
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="standard output is closed"):
        chosen_format(None, elsewhere="json")
    with pytest.raises(InputError, match="standard output is closed") as raised, standard_output():
        pytest.fail("it was opened")
    assert report(raised.value) == 6
    with pytest.raises(InputError, match="standard input is closed"):
        check_input_open()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize(
    "arguments", [["--help"], ["list", "--help"], ["--version"], ["completion", "bash"]]
)
def test_a_full_disk_is_told(arguments: list[str]) -> None:
    """What is printed by click, too; and nothing more is told as the process ends."""
    for target, code in (("/dev/full", 6), ("/dev/null", 0)):
        with Path(target).open("wb") as out:
            done = subprocess.run(
                [sys.executable, "-m", "etcd_actions", *arguments],
                stdout=out,
                stderr=subprocess.PIPE,
                check=False,
                timeout=60,
            )
        assert done.returncode == code, done.stderr
        wanted = b"etcd-actions: standard output cannot be written: No space left on device\n"
        assert done.stderr == (wanted if code else b"")


@pytest.mark.slow
async def test_a_replay_of_a_pipe_that_nobody_writes_to_can_be_ended(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with running(tmp_path, "replay", path) as replay:
        # Nothing is told while it waits: its thread in the open shows that it does.
        await replay.until(lambda: len(list(Path(f"/proc/{replay.pid}/task").iterdir())) > 1)
        replay.signal(signal.SIGTERM)
        assert await replay.wait() == 0, replay.err


@pytest.mark.slow
def test_a_directory_is_no_history(tmp_path: Path) -> None:
    done = finish("replay", tmp_path)
    assert done.code == 6
    assert "Is a directory: give a record" in done.complaint


# --- the last net -----------------------------------------------------------------------


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError(), ValueError("a\n\x1b[2J")])
def test_whatever_else_goes_wrong_is_one_line_and_a_traceback_in_the_log(
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    logs_as_before: None,
) -> None:
    def run(*_: object, **__: object) -> int:
        raise error

    monkeypatch.setattr("trio.run", run)
    monkeypatch.setattr(sys, "argv", ["etcd-actions", "list"])
    assert command_line.invoke() == 1
    logged, line = capsys.readouterr().err.splitlines()
    assert "Traceback" in json.loads(logged)["exception"]
    assert line.startswith(f"etcd-actions: unexpected failure: {type(error).__name__}")
    assert line.isprintable()
