"""Endpoints that cannot be used, and why."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme

from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.etcd.connection_settings import Tls
from etcd_actions.testing import EtcdProcess, EtcdServer, OwnEtcd
from tests.doctor.illness import diagnose, start_encrypted
from tests.support.etcd_server import free_port


class Authority:
    """Signs certificates, and keeps everything in files."""

    def __init__(self, directory: Path, name: str = "ca") -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.file = directory / f"{name}.pem"
        self._authority.cert_pem.write_to_path(str(self.file))

    def issue(self, *names: str, ends: datetime | None = None) -> tuple[Path, Path]:
        """A certificate and its key."""
        number = len(list(self._directory.iterdir()))
        cert, key = self._directory / f"{number}.pem", self._directory / f"{number}.key"
        begins = None if ends is None else ends - timedelta(days=30)
        issued = self._authority.issue_cert(*names, not_before=begins, not_after=ends)
        for part in issued.cert_chain_pems:
            part.write_to_path(str(cert), append=True)
        issued.private_key_pem.write_to_path(str(key))
        return cert, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def encrypted_etcd(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdProcess]:
    """An etcd with a certificate for localhost and 127.0.0.1."""
    cert, key = authority.issue("localhost", "127.0.0.1")
    etcd = start_encrypted(tmp_path_factory.mktemp("etcd"), cert, key)
    yield etcd
    etcd.close()


@pytest.fixture(scope="module")
def distrustful_etcd(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdProcess]:
    """An etcd that wants certificates of its clients."""
    cert, key = authority.issue("localhost", "127.0.0.1")
    own = (authority.file, *authority.issue("doctor@example.org"))
    etcd = start_encrypted(tmp_path_factory.mktemp("etcd"), cert, key, clients=own)
    yield etcd
    etcd.close()


async def test_dead_endpoint_beside_a_good_one(shared_etcd: EtcdServer) -> None:
    dead = f"127.0.0.1:{free_port()}"
    diagnosis = await diagnose(f"{shared_etcd.endpoint},{dead}")
    assert diagnosis.ill == {"connection-refused"}
    finding = diagnosis.one("connection-refused")
    assert (finding.subject, finding.severity) == (dead, "error")
    assert "--endpoints" in finding.remedy
    assert diagnosis.one("reachable").subject == shared_etcd.endpoint
    assert diagnosis.one("watch").severity == "ok"
    assert diagnosis.code is ExitCode.ERRORS


async def test_a_name_without_an_address() -> None:
    diagnosis = await diagnose("no-such-host.invalid:2379")
    assert diagnosis.ill == {"no-address"}
    assert "getent hosts no-such-host.invalid" in diagnosis.one("no-address").remedy
    assert diagnosis.code is ExitCode.ERRORS


async def test_encrypted_and_healthy(encrypted_etcd: EtcdProcess, authority: Authority) -> None:
    diagnosis = await diagnose(encrypted_etcd.endpoint, tls=Tls(ca=authority.file))
    assert diagnosis.ill == set()
    assert "TLSv1." in diagnosis.one("reachable").seen
    assert "2.0 GiB" in diagnosis.one("quota").seen


async def test_plain_where_tls_is_expected(encrypted_etcd: EtcdProcess) -> None:
    diagnosis = await diagnose(encrypted_etcd.endpoint)
    assert diagnosis.ill == {"tls-expected"}
    remedy = diagnosis.one("tls-expected").remedy
    assert f"https://{encrypted_etcd.endpoint}" in remedy
    assert "--cacert" in remedy


async def test_tls_where_plain_is_spoken(shared_etcd: EtcdServer, authority: Authority) -> None:
    diagnosis = await diagnose(shared_etcd.endpoint, tls=Tls(ca=authority.file))
    assert diagnosis.ill == {"tls-not-spoken"}
    assert f"http://{shared_etcd.endpoint}" in diagnosis.one("tls-not-spoken").remedy


async def test_wrong_authority(encrypted_etcd: EtcdProcess, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    diagnosis = await diagnose(encrypted_etcd.endpoint, tls=Tls(ca=other.file))
    assert diagnosis.ill == {"certificate-untrusted"}
    assert "--cacert" in diagnosis.one("certificate-untrusted").remedy
    assert diagnosis.code is ExitCode.ERRORS


async def test_wrong_name(encrypted_etcd: EtcdProcess, authority: Authority) -> None:
    tls = Tls(ca=authority.file, server_name="etcd.example.org")
    diagnosis = await diagnose(encrypted_etcd.endpoint, tls=tls)
    assert diagnosis.ill == {"certificate-wrong-name"}
    finding = diagnosis.one("certificate-wrong-name")
    assert "localhost, 127.0.0.1" in finding.seen
    assert "etcd.example.org" in finding.remedy


async def test_any_certificate_is_believed(encrypted_etcd: EtcdProcess) -> None:
    diagnosis = await diagnose(encrypted_etcd.endpoint, tls=Tls(skip_verify=True))
    assert diagnosis.ill == {"certificate-not-verified"}
    assert diagnosis.code is ExitCode.WARNINGS


async def test_expired_certificate(authority: Authority, tmp_path: Path) -> None:
    ended = datetime(2024, 2, 3, 4, 5, tzinfo=UTC)
    cert, key = authority.issue("127.0.0.1", ends=ended)
    with closing(start_encrypted(tmp_path, cert, key)) as etcd:
        diagnosis = await diagnose(etcd.endpoint, tls=Tls(ca=authority.file))
    assert diagnosis.ill == {"certificate-expired"}
    finding = diagnosis.one("certificate-expired")
    assert "2024-01-04 04:05 UTC to 2024-02-03 04:05 UTC" in finding.seen
    assert "--cert-file" in finding.remedy
    assert diagnosis.code is ExitCode.ERRORS


async def test_a_server_that_completes_no_handshake(authority: Authority) -> None:
    """As that of a stopped process: its system accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        tls = Tls(ca=authority.file)
        diagnosis = await diagnose(f"127.0.0.1:{port}", tls=tls, dial_timeout=0.2)
    assert diagnosis.ill == {"no-answer"}
    finding = diagnosis.one("no-answer")
    assert finding.seen == "it accepts connections, and no TLS handshake within 0.2 s"
    assert "kill -SIGCONT" in finding.remedy


async def test_certificate_that_is_about_to_expire(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("127.0.0.1", ends=datetime.now(UTC) + timedelta(days=5))
    with closing(start_encrypted(tmp_path, cert, key)) as etcd:
        diagnosis = await diagnose(etcd.endpoint, tls=Tls(ca=authority.file))
    assert diagnosis.ill == {"certificate-expires-soon"}
    assert "5.0 days" in diagnosis.one("certificate-expires-soon").seen
    assert diagnosis.code is ExitCode.WARNINGS


async def test_client_certificate_is_missing(
    distrustful_etcd: EtcdProcess, authority: Authority
) -> None:
    diagnosis = await diagnose(distrustful_etcd.endpoint, tls=Tls(ca=authority.file))
    assert diagnosis.ill == {"client-certificate-required"}
    assert "--cert" in diagnosis.one("client-certificate-required").remedy


async def test_client_certificate_of_another_authority(
    distrustful_etcd: EtcdProcess, authority: Authority, tmp_path: Path
) -> None:
    cert, key = Authority(tmp_path, "other").issue("doctor@example.org")
    diagnosis = await diagnose(
        distrustful_etcd.endpoint, tls=Tls(ca=authority.file, cert=cert, key=key)
    )
    assert diagnosis.ill == {"client-certificate-refused"}
    assert str(cert) in diagnosis.one("client-certificate-refused").remedy


async def test_client_certificate_is_good(
    distrustful_etcd: EtcdProcess, authority: Authority
) -> None:
    cert, key = authority.issue("doctor@example.org")
    tls = Tls(ca=authority.file, cert=cert, key=key)
    assert (await diagnose(distrustful_etcd.endpoint, tls=tls)).ill == set()


async def test_certificate_file_is_unusable(shared_etcd: EtcdServer, tmp_path: Path) -> None:
    diagnosis = await diagnose(shared_etcd.endpoint, tls=Tls(ca=tmp_path / "missing.pem"))
    assert diagnosis.ill == {"tls-file-unusable"}
    assert "missing.pem" in diagnosis.one("tls-file-unusable").seen


@pytest.mark.parametrize(("ahead", "told"), [(60.0, "behind"), (-60.0, "ahead of")])
async def test_skewed_clock(shared_etcd: EtcdServer, ahead: float, told: str) -> None:
    diagnosis = await diagnose(shared_etcd.endpoint, ahead=ahead)
    assert diagnosis.ill == {"clock-skew"}
    finding = diagnosis.one("clock-skew")
    # The time in an answer is of whole seconds, and as old as the answer was long under way.
    seconds = re.search(rf"(\d+) s {told}", finding.seen)
    assert seconds is not None
    assert 55 <= int(seconds[1]) <= 65
    assert "chronyc" in finding.remedy
    assert diagnosis.code is ExitCode.WARNINGS


@pytest.mark.faults
async def test_etcd_that_does_not_answer(killable_etcd: OwnEtcd) -> None:
    """Its connections are taken by the kernel, and nothing ever comes back."""
    killable_etcd.suspend()
    diagnosis = await diagnose(killable_etcd.endpoint, dial_timeout=0.3, request_timeout=0.5)
    killable_etcd.resume()
    assert diagnosis.ill == {"no-answer"}
    assert diagnosis.code is ExitCode.ERRORS
