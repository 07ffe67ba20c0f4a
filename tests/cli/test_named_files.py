"""Files that the operator names: of any kind, read up to a limit, and refused clearly."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from etcd_actions._internal.named_files import read_named_file, text_of
from etcd_actions.cli.commands.mutations import read_request
from etcd_actions.cli.exit_codes import report
from etcd_actions.config import SETTINGS, Config, File, Flags, Resolution, resolve
from etcd_actions.config.settings import GRACE, LISTEN_CERT
from etcd_actions.errors import ConfigError, InputError
from etcd_actions.etcd import User
from tests.support.cluster import Certificates, KeyPair


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def key_pair(certificates: Certificates) -> KeyPair:
    return certificates.issue("server", "server.test")


def of(**flags: str) -> Resolution:
    return resolve(SETTINGS, [Flags(flags)])


def special(directory: Path, kind: str) -> Path:
    """A file that is none."""
    path = directory / kind
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))
        case "zero":
            return Path("/dev/zero")
        case "loop":
            path.symlink_to(path)
        case _:
            raise ValueError(kind)
    return path


KINDS = ["directory", "pipe", "socket", "zero", "loop"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_regular_file_is_wanted(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path, kind)
    with pytest.raises(OSError, match=r"directory|pipe|socket|device|levels of symbolic links"):
        read_named_file(path, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_certificates_are_regular_files(tmp_path: Path, kind: str) -> None:
    """OpenSSL would wait for a pipe, and read a device, for ever."""
    path = special(tmp_path, kind)
    with pytest.raises(ConfigError, match=f"^--cacert: {path}: ") as raised:
        Config(of(cacert=str(path)), None)
    assert report(raised.value) == 2


@pytest.mark.parametrize("flag", ["listen_cert", "listen_key", "listen_client_ca"])
def test_the_files_of_the_listener_are_looked_into_at_the_start(
    tmp_path: Path, key_pair: KeyPair, flag: str
) -> None:
    from etcd_actions.app.listeners import server_settings  # noqa: PLC0415 (needs what serves)

    files = {"listen_cert": str(key_pair.cert), "listen_key": str(key_pair.key)}
    name = f"--{flag.replace('_', '-')}"
    with pytest.raises(ConfigError, match=f"^{name}: /dev/zero: it is a device"):
        server_settings(Config(of(**files | {flag: "/dev/zero"}), None))
    broken = tmp_path / "broken.pem"
    broken.write_text("no PEM")
    with pytest.raises(ConfigError, match=str(broken)):
        server_settings(Config(of(**files | {flag: str(broken)}), None))
    assert LISTEN_CERT.flag == "--listen-cert"


def test_the_token_file_is_looked_into_at_the_start(tmp_path: Path) -> None:
    from etcd_actions.app.listeners import server_settings  # noqa: PLC0415 (needs what serves)

    with pytest.raises(ConfigError, match=r"^--token-file: .*Is a directory"):
        server_settings(Config(of(token_file=str(tmp_path)), None))
    path = tmp_path / "tokens"
    path.write_bytes("secret\n".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"^--token-file: .*UTF-16"):
        server_settings(Config(of(token_file=str(path)), None))


def test_der_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ca.der"
    path.write_bytes(b"\x30\x82\x01\x0a" + bytes(300))
    with pytest.raises(ConfigError, match=r"^--cacert: .*DER: openssl x509 -inform der"):
        Config(of(cacert=str(path)), None)


def test_a_pipe_gives_what_is_written_to_it(tmp_path: Path) -> None:
    """As a shell's <(command) does: in several pieces, and late."""
    path = special(tmp_path, "pipe")

    def write() -> None:
        with path.open("wb") as pipe:
            pipe.write(b"grace ")
            pipe.flush()
            pipe.write(b"= '3s'\n")

    writer = threading.Thread(target=write)
    writer.start()
    file = File(path)
    writer.join()
    assert resolve([GRACE], [file])[GRACE].value == 3


def test_a_pipe_that_nobody_writes_to_is_left(tmp_path: Path) -> None:
    path = special(tmp_path, "pipe")
    with pytest.raises(OSError, match=r"nothing was written to this pipe for 0\.05 seconds"):
        read_named_file(path, 100, pipes=True, patience=0.05)


def test_a_pipe_that_is_held_open_in_silence_is_left(tmp_path: Path) -> None:
    path = special(tmp_path, "pipe")
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(path, os.O_WRONLY)
    try:
        os.write(writer, b"some")
        with pytest.raises(OSError, match="nothing was written"):
            read_named_file(path, 100, pipes=True, patience=0.05)
    finally:
        os.close(reader)
        os.close(writer)


def test_an_empty_pipe_of_a_command_that_is_over_is_empty(tmp_path: Path) -> None:
    path = special(tmp_path, "pipe")
    writer = threading.Thread(target=lambda: path.open("wb").close())
    writer.start()
    assert read_named_file(path, 100, pipes=True) == b""
    writer.join()


@pytest.mark.parametrize("size", [100, 101])
def test_the_limit(tmp_path: Path, size: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size)
    if size == 100:
        assert len(read_named_file(path, 100)) == 100
    else:
        with pytest.raises(OSError, match="more than 100 bytes"):
            read_named_file(path, 100)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"endpoints = " + b"[" * 3000 + b"]" * 3000, "line 1 is nested too deeply"),
        (b"codec = 'json'\na = " + b"{a=" * 3000 + b"1" + b"}" * 3000, "line 2 is nested too dee"),
        (b"codec = 'json'\ngrace = " + b"9" * 5000, "line 2 has too long a number"),
        (b"grace = 0x" + b"f" * 5000, "grace: a number of thousands of digits is neither"),
        (b"endpoints" + b".a" * 900 + b" = 1", "endpoints: a table is neither"),
        (b"endpoints" + b".a" * 9000 + b" = 1", "line 1 has more than 2000 dots"),
        (b"grace = 1e400", "grace: 'inf' is not a valid duration"),
        (b"max_streams = nan", "max_streams: 'nan' is not a number"),
        (b"grace = 1979-05-27", "grace: a date is neither"),
        (b'cacert = "a\\u0000b"', "cacert: .* NUL"),
        (b'data_dir = "a\\u0000b"', "data_dir: .* NUL"),
        (b"data_dir = '" + b"a" * 5000 + b"'", "data_dir: .* too long"),
        (b"a" * 5000 + b" = 1", r"\.\.\. \(5000 characters\): there is no such setting"),
        (b'"\\u001b[2J" = 1', r"'\\x1b\[2J': there is no such setting"),
        (b"\xff\xfeg\0", "it is UTF-16: save it as UTF-8"),
        (b"\xfe\xff\0g", "it is UTF-16: save it as UTF-8"),
        (b"g\0r\0", "NUL byte at offset 1: .*UTF-16: save it as UTF-8"),
        (b"codec = 'j\xe9son'", "not UTF-8: byte 0xe9 at offset 10"),
        (b"#" * 70_000, "it has more than 64 KiB"),
    ],
)
def test_a_file_of_settings_that_is_none(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^{path}: (not valid TOML: )?.*{told}") as raised:
        Config(resolve(SETTINGS, [File(path)]), None)
    assert len(str(raised.value)) < 400 + len(str(path))
    assert report(raised.value) == 2


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "with a byte order mark"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_a_file_of_settings_from_any_editor(tmp_path: Path, mark: bytes, newline: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(mark + newline.join([b"grace = '3s'", b"codec = 'json'", b""]))
    assert resolve([GRACE], [File(path)])[GRACE].value == 3


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b"\xef\xbb\xbf\n", "it is empty"),
        (b"one\ntwo\n", "it has several lines"),
        (b"one\n\n", "it has several lines"),
        (b"o\0ne", "NUL"),
        ("one".encode("utf-16"), "UTF-16"),
        (b"\xe9", "not UTF-8"),
        (b"x" * 10_000_000, "more than 4 KiB"),
    ],
)
def test_a_password_file_that_is_none(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "password"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"^--password-file: {path}: .*{told}") as raised:
        Config(of(user="me", password_file=str(path)), None)
    assert report(raised.value) == 2


def test_a_password_of_an_editor_that_marks_its_files(tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_bytes(b"\xef\xbb\xbfsecret\r\n")
    path.chmod(stat.S_IRUSR)
    config = Config(of(user="me", password_file=str(path)), None)
    assert config.user == User(name="me", password_file=path)


@pytest.mark.parametrize("kind", ["directory", "socket", "zero"])
def test_a_request_that_is_no_file(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path, kind)
    with pytest.raises(InputError, match=f"^{path}: ") as raised:
        read_request(str(path))
    assert report(raised.value) == 6


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"action":' + b"[" * 100_000, "nested too deeply"),
        (b'{"action":{"task":{"spec":' + b'{"a":' * 100_000, "nested too deeply"),
        (b'{"action":{"inputUri":' + b"9" * 5000 + b"}}", "neither an EnqueueRequest"),
        (b'{"action":{"inputUri":NaN}}', "inputUri"),
        (b'{"action":{"zonk":1}}', "zonk"),
        (b'{"action":{},"action":{}}', "duplicate key action"),
        ('{"action":{}}'.encode("utf-16"), "it is UTF-16: save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n", "neither an EnqueueRequest nor an Action, in JSON or in binary"),
        (b"{" + b" " * (17 << 20), "it has more than 16 MiB"),
    ],
)
def test_a_request_that_is_none(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: .*{told}") as raised:
        read_request(str(path))
    assert len(str(raised.value)) < 800 + len(str(path))
    assert report(raised.value) == 6


def test_a_request_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "request.json"
    path.write_bytes(b'\xef\xbb\xbf{"action":{"inputUri":"x"}}\r\n')
    assert read_request(str(path)).action.input_uri == "x"


def test_text_of() -> None:
    assert text_of(b"\xef\xbb\xbf\xef\xbb\xbfa") == "\ufeffa"


def test_a_good_certificate_is_read(certificates: Certificates) -> None:
    assert Config(of(cacert=str(certificates.ca)), None).connection("a:1").tls is not None
