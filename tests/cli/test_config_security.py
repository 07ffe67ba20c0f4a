"""TLS and the user of etcd among the settings, and the files that they name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog

from etcd_actions.config import (
    Config,
)
from etcd_actions.errors import ConfigError
from etcd_actions.etcd import Tls, User
from tests.cli.test_config import SECRET, connect, load, values
from tests.support.cluster import Certificates, KeyPair

NOBODY = 65534


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def ca(certificates: Certificates) -> str:
    return str(certificates.ca)


@pytest.fixture(scope="module")
def pair(certificates: Certificates) -> KeyPair:
    return certificates.issue("client", "client.test")


@pytest.fixture
def password_file(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    return file


@contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything: be somebody else for a while."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


class TestTls:
    """TLS is used where something asks for it."""

    def test_nothing_asks(self) -> None:
        assert connect(insecure_skip_tls_verify="true").tls is None
        assert connect(endpoints="http://a:1,b:2").tls is None

    def test_https_asks_for_its_endpoint(self) -> None:
        settings = connect(endpoints="https://a:1,b:2")
        assert [settings.tls_for(each) for each in settings.endpoints] == [Tls(), None]

    def test_without_verification_where_it_is_used(self) -> None:
        tls = Tls(skip_verify=True)
        assert connect(endpoints="https://a:1", insecure_skip_tls_verify="true").tls == tls
        assert connect(insecure_transport="false", insecure_skip_tls_verify="true").tls == tls

    def test_authority_asks(self, ca: str) -> None:
        # As for etcdctl, where --insecure-transport is true by default.
        assert connect(cacert=ca, insecure_transport="true").tls == Tls(ca=Path(ca))

    def test_server_name_asks(self) -> None:
        assert connect(tls_server_name="etcd.test").tls == Tls(server_name="etcd.test")

    def test_client_certificate_asks(self, pair: KeyPair) -> None:
        config = load({"ETCDCTL_KEY": str(pair.key)}, cert=str(pair.cert))
        assert config.connection("a:1").tls == Tls(cert=pair.cert, key=pair.key)
        assert config.security == ["--cert", "ETCDCTL_KEY"]

    def test_certificate_without_key(self, pair: KeyPair) -> None:
        with pytest.raises(ConfigError, match=r"^--cert is given without --key \(ETCDCTL_KEY\)"):
            load(cert=str(pair.cert))
        with pytest.raises(ConfigError, match=r"^ETCDCTL_KEY is given without --cert "):
            load({"ETCDCTL_KEY": str(pair.key)})

    def test_plain_endpoint(self, ca: str) -> None:
        with pytest.raises(ConfigError, match=r"^ETCDCTL_ENDPOINTS: http://b:2 .*--cacert"):
            load({"ETCDCTL_ENDPOINTS": "a:1,http://b:2"}, cacert=ca)
        with pytest.raises(ConfigError, match=r"^--endpoints: .*ETCDCTL_INSECURE_TRANSPORT"):
            load({"ETCDCTL_INSECURE_TRANSPORT": "0"}, endpoints="http://b:2")

    def test_missing_file(self, tmp_path: Path) -> None:
        missing = str(tmp_path / "missing.pem")
        with pytest.raises(ConfigError) as raised:
            load({"ETCDCTL_CACERT": missing})
        assert str(raised.value) == f"ETCDCTL_CACERT: {missing}: No such file or directory"

    def test_unreadable_file(self, tmp_path: Path) -> None:
        file = tmp_path / "ca.pem"
        file.touch(mode=0)
        with (
            unprivileged(),
            pytest.raises(ConfigError, match=r"^--cacert: .*ca\.pem: Permission denied"),
        ):
            load(cacert=str(file))

    def test_directory_in_place_of_a_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^--cacert: .*: Is a directory"):
            load(cacert=str(tmp_path))

    def test_key_of_another_certificate(self, certificates: Certificates, pair: KeyPair) -> None:
        other = certificates.issue("other", "other.test")
        with pytest.raises(ConfigError, match=r"^--cert, --key: .*other\.key"):
            load(cert=str(pair.cert), key=str(other.key))

    def test_file_without_certificates(self, pair: KeyPair) -> None:
        with pytest.raises(ConfigError, match=r"^--cacert: .*client\.key"):
            load(cacert=str(pair.key))


class TestUser:
    """Whose password is taken from where."""

    def test_password_after_the_colon(self) -> None:
        for config in (load(user="a:b:c"), load({"ETCDCTL_USER": "a:b:c"})):
            assert config.user == User(name="a", password="b:c")

    def test_with_a_password_apart_all_is_the_name(self) -> None:
        assert load(user="a:b", password="c").user == User(name="a:b", password="c")
        config = load({"ETCDCTL_PASSWORD": "c"}, user="a:b")
        assert config.user == User(name="a:b", password="c")
        assert config.security == ["--user"]

    def test_password_in_a_file(self, password_file: Path) -> None:
        config = load({"ETCD_ACTIONS_PASSWORD_FILE": str(password_file)}, user="a")
        assert config.user == User(name="a", password_file=password_file)

    def test_password_in_a_pipe_is_read_once(self) -> None:
        read, write = os.pipe()
        os.write(write, f"{SECRET}\r\n".encode())
        os.close(write)
        user = load(user="a", password_file=f"/dev/fd/{read}").user
        os.close(read)
        assert user == User(name="a", password=SECRET)

    def test_password_and_file(self, password_file: Path) -> None:
        file = str(password_file)
        with pytest.raises(ConfigError, match=r"^--password and --password-file: give one"):
            load(user="a", password="b", password_file=file)
        both = {"ETCDCTL_PASSWORD": "b", "ETCD_ACTIONS_PASSWORD_FILE": file}
        with pytest.raises(ConfigError, match=r"^ETCDCTL_PASSWORD and ETCD_ACTIONS_PASSWORD_FILE:"):
            load(both, user="a")
        # A flag goes before a variable.
        flag = load({"ETCDCTL_PASSWORD": "b"}, user="a", password_file=file)
        assert flag.user == User(name="a", password_file=password_file)

    @pytest.mark.parametrize("flags", [{"password": SECRET}, {"password_file": "nowhere"}])
    def test_password_without_user(self, flags: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match=r"^--password\S* is given without a user: .*--user"):
            load(**flags)

    @pytest.mark.parametrize("given", [":b", "a:"])
    def test_half_a_user(self, given: str) -> None:
        with pytest.raises(ConfigError, match=r"^ETCDCTL_USER: the (name|password .*) is empty"):
            load({"ETCDCTL_USER": given})

    def test_asked_for(self) -> None:
        found = values(user="a")
        assert Config(found, lambda name: f"{name}-{SECRET}").user == User(
            name="a", password=f"a-{SECRET}"
        )
        assert Config(found, None).user is None

    @pytest.mark.parametrize("content", [b"", b"\n", b"\xff"])
    def test_file_without_a_password(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "password"
        file.write_bytes(content)
        with pytest.raises(ConfigError, match=r"^--password-file: .*password: "):
            load(user="a", password_file=str(file))

    def test_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"^ETCD_ACTIONS_PASSWORD_FILE: .*missing: No such"):
            load({"ETCD_ACTIONS_PASSWORD_FILE": str(tmp_path / "missing")}, user="a")

    def test_file_that_everybody_may_read(self, password_file: Path) -> None:
        with structlog.testing.capture_logs() as logs:
            load(user="a", password_file=str(password_file))
            assert not logs
            password_file.chmod(0o644)
            load(user="a", password_file=str(password_file))
        assert [log["event"] for log in logs] == ["password_file_readable_by_others"]
        assert logs[0]["file"] == str(password_file)
