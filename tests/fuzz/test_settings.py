"""Whatever is given as a setting, or stands in its file, is a value or an error that names it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from etcd_actions.config import SETTINGS, Config, Environment, File, Flags, Setting, resolve
from etcd_actions.config.security import check_tls
from etcd_actions.config.settings import ALLOWED_HOSTS, LISTEN_USERS
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.etcd.password_file import read_password_file
from tests.fuzz.texts import ODD, TEXTS, spoiled, tried

pytestmark = pytest.mark.slow

MANY = settings(
    max_examples=600,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
NAMES = [setting.name for setting in SETTINGS]
TOML = b"""# comment
endpoints = ["a:1", 'b:2']
grace = "10s"
max_streams = 5
rate_limit = 2.5
codec = "json"
collect_orphans = true
"""


@MANY
@given(st.sampled_from(SETTINGS), TEXTS)
@example(LISTEN_USERS, "9" * 5000)
@example(ALLOWED_HOSTS, "a/" * 2500)
def test_a_text(setting: Setting[object], text: str) -> None:
    for source, name in (
        (Flags({setting.name: text}), setting.flag),
        (Environment({setting.variable: text}), setting.variable),
    ):
        values = resolve([setting], [source])
        for error in values.errors:
            assert str(error).startswith(name)
            assert len(str(error)) < 500
        if (value := values.get(setting)) is not None and value.shown is not None:
            assert isinstance(value.shown, str)


@MANY
@given(st.dictionaries(st.sampled_from(NAMES), TEXTS, max_size=6))
def test_texts_together(texts: dict[str, str]) -> None:
    values = resolve(SETTINGS, [Flags(texts)])
    connection, complaint = tried(
        ConfigError, lambda: Config(values, None).connection("127.0.0.1:2379")
    )
    assert len(complaint) < 1000
    assert connection is None or connection.endpoints


@MANY
@given(TEXTS)
def test_endpoints(text: str) -> None:
    """What was read can be written, and read again."""
    endpoints, complaint = tried(ConfigError, lambda: parse_endpoints(text))
    assert len(complaint) < 500
    for endpoint in endpoints or ():
        (again,) = parse_endpoints(str(endpoint))
        assert again[:2] == endpoint[:2]


SCALARS = (
    TEXTS.filter(lambda text: text.isprintable() and "'" not in text).map(lambda text: f"'{text}'")
    | st.integers().map(str)
    | st.sampled_from(
        [
            "9" * 5000,
            "0x" + "f" * 5000,
            "1e400",
            "nan",
            "-inf",
            "1979-05-27",
            "07:32:00",
            "1979-05-27T07:32:00Z",
            "true",
            "[" * 3000,
            "{a=" * 3000,
            '"\\u0000"',
            '"""\n"""',
        ]
    )
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda each: f"[{','.join(each)}]")
        | st.lists(inner, max_size=2).map(
            lambda each: "{" + ",".join(f"k{n}={one}" for n, one in enumerate(each)) + "}"
        )
    ),
    max_leaves=4,
)
LINES = st.builds(
    "{} = {}".format,
    st.sampled_from(
        [*NAMES, "a.b", "endpoints" + ".a" * 1500, "'odd key'", "[t]", "[[t]]", "x" * 999]
    ),
    VALUES,
)
FILES = (
    st.lists(LINES, max_size=4).map("\n".join).map(lambda text: text.encode(errors="replace"))
    | spoiled(TOML)
    | st.binary(max_size=100)
    | TEXTS.map(lambda text: text.encode("utf-16", errors="replace"))
)


@MANY
@given(FILES)
@example(b"\xef\xbb\xbf" + TOML)
@example(TOML.replace(b"\n", b"\r\n"))
@example(b"endpoints=" + b"[" * 3000 + b"]" * 3000)
@example(b"grace=" + b"9" * 5000)
def test_a_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    file, complaint = tried(ConfigError, lambda: File(path))
    if file is None:
        assert complaint.startswith(f"{path}: ")
        assert len(complaint) < 500 + len(str(path))
        return
    for error in resolve(SETTINGS, [file]).errors:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error)) < 1000


@MANY
@given(st.binary(max_size=60) | TEXTS.map(lambda text: text.encode(errors="surrogatepass")))
def test_a_password_file(tmp_path: Path, content: bytes) -> None:
    """The password is what the only line of the file holds."""
    path = tmp_path / "password"
    path.write_bytes(content)
    password, complaint = tried(ConfigError, lambda: read_password_file(path))
    if password is None:
        assert str(path) in complaint
    else:
        whole = content.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\n").removesuffix(b"\r")
        assert password.encode() == whole


PEM = b"-----BEGIN CERTIFICATE-----\nMIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8A\n-----END CERTIFICATE-----\n"


@settings(MANY, max_examples=100)
@given(spoiled(PEM) | st.binary(max_size=200) | ODD.map(lambda t: t.encode(errors="replace")))
def test_certificates(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.pem"
    path.write_bytes(content)
    for given_ in ({"cacert": str(path)}, {"cert": str(path), "key": str(path)}):
        with pytest.raises(ConfigError, match=r"^--(cacert|cert)\b") as raised:
            check_tls(resolve(SETTINGS, [Flags(given_)]))
        assert str(path) in str(raised.value)
