"""Settings reach a real etcd that wants them, and what is wrong is answered with advice."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from etcd_actions.cli.command_line import invoke
from etcd_actions.cli.exit_codes import report
from etcd_actions.config import SETTINGS
from etcd_actions.errors import Unauthenticated
from tests.support.cluster import WORKER, Certificates, EtcdCluster, ServerTls
from tests.support.etcd_server import EtcdServer


class Site:
    """An etcd that asks for client certificates and users."""

    def __init__(self, directory: Path) -> None:
        certificates = Certificates(directory / "tls")
        self.ca = str(certificates.ca)
        self.other_ca = str(Certificates(directory / "other").ca)
        self.client = certificates.issue("client", "client.test")
        server = ServerTls(
            pair=certificates.issue("server", "127.0.0.1", "etcd.test"),
            ca=certificates.ca,
            client_certs=True,
        )
        self.cluster = EtcdCluster(directory / "etcd", tls=server, client=self.client)
        self.password_file = directory / "password"
        self.password_file.write_text(f"{WORKER.password}\n")
        self.password_file.chmod(0o600)

    def flags(self, **changes: str | None) -> list[str]:
        """All that is needed, with changes; None leaves a flag out."""
        flags: dict[str, str | None] = {
            "endpoints": self.cluster.endpoints[0],
            "cacert": self.ca,
            "cert": str(self.client.cert),
            "key": str(self.client.key),
            "user": WORKER.name,
            "password-file": str(self.password_file),
        }
        chosen = flags | {name.replace("_", "-"): text for name, text in changes.items()}
        return [f"--{name}={text}" for name, text in chosen.items() if text is not None]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.cluster.start()
        made.cluster.enable_auth()
        yield made
    finally:
        made.cluster.stop()


@pytest.fixture(autouse=True)
def _no_settings_but_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    for setting in SETTINGS:
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.setattr("etcd_actions.cli.command_line.configure_logs", lambda: None)
    monkeypatch.setattr("etcd_actions.cli.options.configure_logs", lambda *_: None)


def list_actions(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> tuple[int, str]:
    """The exit code, and the last line on stderr: gRPC writes there too."""
    monkeypatch.setattr(sys, "argv", ["etcd-actions", "list", "--output=jsonl", *arguments])
    code = invoke()
    out, err = capfd.readouterr()
    assert out == ""
    assert str(WORKER.password) not in err
    return code, err.splitlines()[-1] if err else ""


@pytest.mark.parametrize("transport", ["grpc", "gateway"])
def test_flags(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    transport: str,
) -> None:
    arguments = site.flags(transport=transport)
    assert list_actions(monkeypatch, capfd, arguments) == (0, "")


def test_the_variables_of_a_working_etcdctl(
    site: Site, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ETCDCTL_ENDPOINTS", f"https://{site.cluster.endpoints[0]}")
    monkeypatch.setenv("ETCDCTL_CACERT", site.ca)
    monkeypatch.setenv("ETCDCTL_CERT", str(site.client.cert))
    monkeypatch.setenv("ETCDCTL_KEY", str(site.client.key))
    monkeypatch.setenv("ETCDCTL_USER", f"{WORKER.name}:{WORKER.password}")
    assert list_actions(monkeypatch, capfd, []) == (0, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"tls_server_name": "etcd.test"},
        {"cacert": None, "insecure_skip_tls_verify": "true"},
        {"user": f"{WORKER.name}:{WORKER.password}", "password_file": None},
    ],
)
def test_other_ways_in(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, str | None],
) -> None:
    assert list_actions(monkeypatch, capfd, site.flags(**changes)) == (0, "")


@pytest.mark.parametrize(
    ("changes", "code", "advice"),
    [
        # etcd takes the certificate's name for the user then.
        ({"user": None, "password_file": None}, 4, "grant the etcd user read and write"),
        ({"user": "nobody"}, 4, "check the user and the password"),
        ({"cert": None, "key": None}, 3, "give one that etcd's authority signed, with --cert"),
        ({"tls_server_name": "wrong.test"}, 3, "--tls-server-name, or in --endpoints"),
        ({"cacert": "other"}, 3, "give the authority that signed etcd's certificate with --cacert"),
        (
            dict.fromkeys(("cacert", "cert", "key")),
            3,
            "write https:// before its address, or give --cacert",
        ),
    ],
)
def test_advice(
    site: Site,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, str | None],
    code: int,
    advice: str,
) -> None:
    given = {name: site.other_ca if text == "other" else text for name, text in changes.items()}
    found, message = list_actions(monkeypatch, capfd, site.flags(**given))
    assert found == code
    assert message.startswith("etcd-actions: ")
    assert advice in message


def test_tls_where_there_is_none(
    site: Site,
    shared_etcd: EtcdServer,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = [f"--endpoints={shared_etcd.endpoint}", f"--cacert={site.ca}"]
    code, message = list_actions(monkeypatch, capfd, arguments)
    assert code == 3
    assert "for an etcd without TLS leave out https://" in message


def test_no_user(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(Unauthenticated("KV/Range: etcdserver: user name is empty")) == 4
    assert "give --user and --password-file, or ETCDCTL_USER" in capsys.readouterr().err
