"""How a cluster is reached: encryption, its files, and members that are away."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.errors import ConfigError, OutcomeUnknown, Unavailable
from etcd_actions.etcd import Etcd, EtcdClient, Tls, TransportName
from etcd_actions.etcd.api import KeyRange, WatchCreate
from tests.support.cluster import Certificates, EtcdCluster, KeyPair, ServerTls
from tests.support.etcd_server import free_port
from tests.support.everyday import first_everyday
from tests.support.pem import locked, subject_hash
from tests.support.recording import RecordingSink
from tests.support.scene import judge_delivery, reflecting
from tests.support.waiting import until_done

# Enough for a handshake with a member that is there, also on a slow machine.
DIAL_TIMEOUT = 1.0
# For members that are not.
_SHORT_DIAL_TIMEOUT = 0.2
_SLACK = 5.0
_PATIENCE = 60.0


@dataclass(frozen=True, kw_only=True)
class Servers:
    """An etcd of each kind, and authorities that vouch for them, or do not."""

    certs: Certificates
    strangers: Certificates
    plain: EtcdCluster
    tls: EtcdCluster
    mutual: EtcdCluster
    renamed: EtcdCluster
    expired: EtcdCluster

    @property
    def own(self) -> Tls:
        """For ``mutual``."""
        assert self.mutual.tls is not None
        return self.mutual.tls


Case: TypeAlias = Callable[[Servers], tuple[EtcdCluster, Tls | None]]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Five of one member each."""
    directory = tmp_path_factory.mktemp("tls")
    certs, strangers = Certificates(directory / "ca"), Certificates(directory / "strangers")
    shown = ServerTls(pair=certs.issue("server", "127.0.0.1", "localhost"), ca=certs.ca)
    clusters = {
        "plain": EtcdCluster(directory / "plain"),
        "tls": EtcdCluster(directory / "tls", tls=shown),
        "mutual": EtcdCluster(
            directory / "mutual",
            tls=replace(shown, client_certs=True),
            client=certs.issue("client", "client"),
        ),
        "renamed": EtcdCluster(
            directory / "renamed", tls=replace(shown, pair=certs.issue("renamed", "etcd.example"))
        ),
        "expired": EtcdCluster(
            directory / "expired",
            tls=replace(shown, pair=certs.issue("expired", "127.0.0.1", expired=True)),
        ),
    }
    with ExitStack() as stack:
        for cluster in clusters.values():
            stack.callback(cluster.stop)
            cluster.start()
        yield Servers(certs=certs, strangers=strangers, **clusters)


async def read(etcd: Etcd, prefix: bytes) -> None:
    await etcd.range(KeyRange.of_prefix(prefix))


async def write(etcd: Etcd, prefix: bytes) -> None:
    await etcd.put(prefix + b"k", b"v")


async def watch(etcd: Etcd, prefix: bytes) -> None:
    async with etcd.watch() as stream:
        stream.create(WatchCreate(1, KeyRange.of_prefix(prefix), 1))
        while not any(response.events for response in await stream.receive()):
            continue


USES = [write, read, watch]
each_use = pytest.mark.parametrize("use", [write, watch], ids=lambda use: use.__name__)


@pytest.mark.parametrize(
    "case",
    first_everyday(
        [
            pytest.param(lambda s: (s.tls, Tls(ca=s.certs.ca)), id="authority"),
            pytest.param(lambda s: (s.mutual, s.own), id="client-certificate"),
            pytest.param(
                lambda s: (s.renamed, Tls(ca=s.certs.ca, server_name="etcd.example")),
                id="server-name",
            ),
            pytest.param(lambda s: (s.tls, Tls(skip_verify=True)), id="unverified"),
            pytest.param(lambda s: (s.renamed, Tls(skip_verify=True)), id="unverified-name"),
            pytest.param(
                lambda s: (s.mutual, replace(s.own, ca=None, skip_verify=True)),
                id="unverified-mutual",
            ),
            pytest.param(lambda s: (s.expired, Tls(skip_verify=True)), id="unverified-expired"),
        ],
        3,
    ),
)
async def test_encrypted(
    servers: Servers, prefix: bytes, transport: TransportName, case: Case
) -> None:
    """Calls and streams work over TLS."""
    cluster, tls = case(servers)
    with trio.fail_after(_PATIENCE):
        async with open_etcd(cluster.endpoints, tls=tls, transport=transport) as etcd:
            for use in USES:
                await use(etcd, prefix)


_NOT_VERIFIED = "certificate verification failed: "
_OTHER_NAME = _NOT_VERIFIED + ".*name"
_OWN_CERTIFICATE = "requires a client certificate, or another one"


@each_use
@pytest.mark.parametrize(
    ("case", "complaint"),
    first_everyday(
        [
            pytest.param(
                lambda s: (s.tls, Tls(ca=s.strangers.ca)),
                _NOT_VERIFIED + "unable to get local issuer certificate",
                id="other-authority",
            ),
            pytest.param(lambda s: (s.renamed, Tls(ca=s.certs.ca)), _OTHER_NAME, id="other-name"),
            pytest.param(
                lambda s: (s.tls, Tls(ca=s.certs.ca, server_name="etcd.example")),
                _OTHER_NAME,
                id="other-server-name",
            ),
            pytest.param(
                lambda s: (s.expired, Tls(ca=s.certs.ca)),
                _NOT_VERIFIED + "certificate has expired",
                id="expired",
            ),
            pytest.param(
                lambda s: (s.mutual, Tls(ca=s.certs.ca)),
                _OWN_CERTIFICATE,
                id="no-client-certificate",
            ),
            pytest.param(
                lambda s: (s.mutual, with_pair(s.own, s.strangers)),
                _OWN_CERTIFICATE,
                id="foreign-client-certificate",
            ),
            pytest.param(
                lambda s: (s.mutual, Tls(skip_verify=True)),
                _OWN_CERTIFICATE,
                id="unverified-no-client-certificate",
            ),
            pytest.param(
                lambda s: (s.plain, Tls(ca=s.certs.ca)), "does it use TLS", id="plain-etcd"
            ),
            pytest.param(
                lambda s: (s.plain, Tls(skip_verify=True)), "does it use TLS", id="unverified-plain"
            ),
            pytest.param(lambda s: (s.tls, None), "does it require TLS", id="plain-client"),
        ],
        5,
    ),
)
async def test_not_let_in(
    servers: Servers,
    prefix: bytes,
    transport: TransportName,
    case: Case,
    complaint: str,
    use: Callable[[Etcd, bytes], Awaitable[None]],
) -> None:
    """Whatever is wrong in the handshake: Unavailable, soon, with member and reason in it.

    A write is known not to have been made.
    """
    cluster, tls = case(servers)
    with trio.fail_after(_PATIENCE):
        async with open_etcd(cluster.endpoints, tls=tls, transport=transport) as etcd:
            with pytest.raises(Unavailable, match=complaint) as caught:
                await use(etcd, prefix)
    assert cluster.endpoints[0] in str(caught.value)
    assert not isinstance(caught.value, OutcomeUnknown)


def with_pair(tls: Tls, certs: Certificates) -> Tls:
    pair = certs.issue("client", "client")
    return replace(tls, cert=pair.cert, key=pair.key)


async def test_comments_in_any_language(
    servers: Servers, prefix: bytes, tmp_path: Path, transport: TransportName
) -> None:
    """Files of authorities have names in them, which are not all ASCII."""
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes("# Főtanúsítvány\n".encode() + servers.certs.ca.read_bytes())
    tls = Tls(ca=bundle)
    async with open_etcd(servers.tls.endpoints, tls=tls, transport=transport) as etcd:
        await write(etcd, prefix)


@pytest.mark.parametrize("where", ["file", "directory"])
async def test_the_systems_authorities(
    servers: Servers,
    prefix: bytes,
    transport: TransportName,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Without a ca the system's authorities count, also for https:// alone."""
    endpoints = [f"https://{endpoint}" for endpoint in servers.tls.endpoints]
    for certs, good in ((servers.strangers, False), (servers.certs, True)):
        directory = tmp_path / certs.ca.parent.name
        directory.mkdir()
        # That is how OpenSSL finds a certificate in a directory.
        shutil.copy(certs.ca, directory / f"{subject_hash(certs.ca)}.0")
        monkeypatch.setenv("SSL_CERT_FILE", str(certs.ca if where == "file" else tmp_path / "none"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none" if where == "file" else directory))
        async with open_etcd(endpoints, transport=transport) as etcd:
            if good:
                await write(etcd, prefix)
            else:
                with pytest.raises(Unavailable, match=_NOT_VERIFIED):
                    await write(etcd, prefix)


async def test_a_system_without_authorities(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: TransportName
) -> None:
    """It is said at once: no connection could ever succeed."""
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match="give a ca file"):
        async with open_etcd("https://127.0.0.1:1", transport=transport):
            raise AssertionError


def _cases_of_bad_files(directory: Path) -> dict[str, tuple[Tls, Path]]:
    certs = Certificates(directory)
    good, other = certs.issue("good", "client"), certs.issue("other", "client")
    garbage, missing = directory / "garbage.pem", directory / "missing.pem"
    garbage.write_bytes(b"\x00\xff no certificate")
    empty = directory / "empty.pem"
    empty.touch()
    half = directory / "half.pem"
    half.write_bytes(certs.ca.read_bytes()[:200])
    encrypted = directory / "encrypted.key"
    encrypted.write_bytes(locked(good.key, b"secret"))
    ca = certs.ca
    return {
        "ca-missing": (Tls(ca=missing), missing),
        "ca-directory": (Tls(ca=directory), directory),
        "ca-garbage": (Tls(ca=garbage), garbage),
        "ca-empty": (Tls(ca=empty), empty),
        "ca-half": (Tls(ca=half), half),
        "ca-is-a-key": (Tls(ca=good.key), good.key),
        "cert-missing": (Tls(ca=ca, cert=missing, key=good.key), missing),
        "cert-garbage": (Tls(ca=ca, cert=garbage, key=good.key), garbage),
        "key-missing": (Tls(ca=ca, cert=good.cert, key=missing), missing),
        "key-garbage": (Tls(ca=ca, cert=good.cert, key=garbage), garbage),
        "key-of-another": (Tls(ca=ca, cert=good.cert, key=other.key), other.key),
        "key-with-passphrase": (Tls(ca=ca, cert=good.cert, key=encrypted), encrypted),
        "unverified-ca-garbage": (Tls(ca=garbage, skip_verify=True), garbage),
    }


@pytest.mark.parametrize(
    "case",
    first_everyday(
        [
            "ca-missing",
            "ca-directory",
            "ca-garbage",
            "ca-empty",
            "ca-half",
            "ca-is-a-key",
            "cert-missing",
            "cert-garbage",
            "key-missing",
            "key-garbage",
            "key-of-another",
            "key-with-passphrase",
            "unverified-ca-garbage",
        ],
        5,
    ),
)
async def test_files_that_cannot_be_used(
    tmp_path: Path, transport: TransportName, case: str
) -> None:
    """Found at the start, before anything is sent; the message names the file."""
    tls, at_fault = _cases_of_bad_files(tmp_path / "files")[case]
    with pytest.raises(ConfigError) as caught:
        async with open_etcd("127.0.0.1:1", tls=tls, transport=transport):
            raise AssertionError
    assert str(at_fault) in str(caught.value)


class LiveFiles:
    """Files that a client and its etcd read, replaced while both run."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server = directory / "server"
        self.client = directory / "client"
        for each in (self.server, self.client):
            each.mkdir(parents=True)

    def renew(self, generation: str) -> Certificates:
        """Another authority, with certificates for both; used by nobody yet."""
        certs = Certificates(self.directory / generation)
        for name, identity in (("server", "127.0.0.1"), ("client", "client")):
            certs.issue(name, identity)
        return certs

    @staticmethod
    def put(certs: Certificates, place: Path) -> None:
        """Let a place have them."""
        for file in certs.ca.parent.iterdir():
            shutil.copy(file, place / file.name)

    def cluster(self) -> EtcdCluster:
        """One that reads them, and whose clients do."""
        return EtcdCluster(
            self.directory / "etcd",
            tls=ServerTls(
                pair=KeyPair(self.server / "server.pem", self.server / "server.key"),
                ca=self.server / "ca.pem",
                client_certs=True,
            ),
            client=KeyPair(self.client / "client.pem", self.client / "client.key"),
        )

    @property
    def tls(self) -> Tls:
        """The client's."""
        return Tls(
            ca=self.client / "ca.pem",
            cert=self.client / "client.pem",
            key=self.client / "client.key",
        )


@pytest.fixture
def live(tmp_path: Path) -> LiveFiles:
    """The first generation is in place."""
    files = LiveFiles(tmp_path / "live")
    first = files.renew("first")
    files.put(first, files.server)
    files.put(first, files.client)
    return files


@pytest.fixture
def live_etcd(live: LiveFiles) -> Iterator[EtcdCluster]:
    """One member with these files."""
    cluster = live.cluster()
    cluster.start()
    yield cluster
    cluster.stop()


async def restart(cluster: EtcdCluster) -> None:
    (member,) = cluster.members
    member.stop()
    await trio.to_thread.run_sync(cluster.start)


async def until_it_works(etcd: Etcd, prefix: bytes) -> None:
    """Write until etcd takes it."""
    await until_done(lambda: write(etcd, prefix), despite=Unavailable)


async def until_refused(etcd: Etcd, prefix: bytes, complaint: str) -> None:
    """Read until that fails for the reason; before, it may find the connection gone."""
    said = ""
    while complaint not in said:
        with pytest.raises(Unavailable) as caught:
            await read(etcd, prefix)
        said = str(caught.value)


async def test_another_authority_takes_over(
    live: LiveFiles, live_etcd: EtcdCluster, prefix: bytes, transport: TransportName
) -> None:
    """etcd comes back with other certificates; once the client's are there too, all goes on."""
    sink = RecordingSink()
    with trio.fail_after(_PATIENCE):
        async with (
            open_etcd(live_etcd.endpoints, tls=live.tls, transport=transport) as etcd,
            reflecting(etcd, prefix, sink) as reflector,
        ):
            await write(etcd, prefix)
            second = live.renew("second")
            live.put(second, live.server)
            await restart(live_etcd)
            await until_refused(etcd, prefix, _NOT_VERIFIED)
            live.put(second, live.client)
            await until_it_works(etcd, prefix)
            await judge_delivery(sink, etcd, prefix)
            assert reflector.statistics().relists == {}


@pytest.mark.parametrize(
    "unverified",
    first_everyday([pytest.param(False, id="verified"), pytest.param(True, id="unverified")]),
)
async def test_files_may_be_away_for_a_while(
    live: LiveFiles,
    live_etcd: EtcdCluster,
    prefix: bytes,
    transport: TransportName,
    unverified: bool,
) -> None:
    """While files are being replaced, connecting is Unavailable and says why; then all goes on."""
    sink = RecordingSink()
    tls = replace(live.tls, skip_verify=unverified)
    with trio.fail_after(_PATIENCE):
        async with (
            open_etcd(live_etcd.endpoints, tls=tls, transport=transport) as etcd,
            reflecting(etcd, prefix, sink) as reflector,
        ):
            assert tls.cert is not None
            kept = tls.cert.read_bytes()
            tls.cert.unlink()
            # The open connection needs no files.
            await write(etcd, prefix)
            # gRPC connects again by itself, with what it has read, unless a call fails first.
            (member,) = live_etcd.members
            member.stop()
            await until_refused(etcd, prefix, str(tls.cert))
            await trio.to_thread.run_sync(live_etcd.start)
            await until_refused(etcd, prefix, str(tls.cert))
            tls.cert.write_bytes(kept)
            await until_it_works(etcd, prefix)
            await judge_delivery(sink, etcd, prefix)
            assert reflector.statistics().relists == {}


@contextmanager
def refusing() -> Iterator[str]:
    """Nobody listens."""
    yield f"127.0.0.1:{free_port()}"


@contextmanager
def silent() -> Iterator[str]:
    """Connections are made, by the system, and nobody ever says a word on them."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def black_hole() -> Iterator[str]:
    """Nothing comes back to whoever tries to connect: the queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def unknown() -> Iterator[str]:
    """A name that stands for nothing."""
    yield "etcd.invalid:2379"


@pytest.mark.parametrize(
    "encrypted",
    first_everyday([pytest.param(False, id="plain"), pytest.param(True, id="tls")]),
)
@pytest.mark.parametrize(
    ("away", "use"),
    # Each way to be away, and both uses, every day.
    first_everyday(
        [
            *((refusing, write), (silent, watch), (black_hole, write), (unknown, write)),
            *((refusing, watch), (silent, write), (black_hole, watch), (unknown, watch)),
        ],
        4,
    ),
)
async def test_the_first_member_is_away(
    servers: Servers,
    prefix: bytes,
    transport: TransportName,
    away: Callable[[], AbstractContextManager[str]],
    encrypted: bool,
    use: Callable[[Etcd, bytes], Awaitable[None]],
) -> None:
    """A call goes on to the next one itself, after at most the dial time-out.

    A stream fails, by then, and the next one is opened there.
    """
    cluster = servers.tls if encrypted else servers.plain
    with away() as first:
        async with open_etcd(
            [first, *cluster.endpoints],
            tls=cluster.tls,
            transport=transport,
            dial_timeout=DIAL_TIMEOUT,
            request_timeout=_PATIENCE,
        ) as etcd:
            with trio.fail_after(DIAL_TIMEOUT + _SLACK):
                if use is watch:
                    with pytest.raises(Unavailable, match=first.partition(":")[0]):
                        await use(etcd, prefix)
                    await write(etcd, prefix)
                await use(etcd, prefix)
            assert isinstance(etcd, EtcdClient)
            used = etcd._current
            assert used is not None
            assert str(used.connection.endpoint) == cluster.endpoints[0]
            await read(etcd, prefix)
            # It stays there.
            assert etcd._current is used


@pytest.mark.parametrize("away", [refusing, silent, black_hole])
async def test_no_member_is_there(
    prefix: bytes, transport: TransportName, away: Callable[[], AbstractContextManager[str]]
) -> None:
    """Each was tried once: Unavailable, with nothing written."""
    with away() as one, away() as two:
        async with open_etcd(
            [one, two],
            transport=transport,
            dial_timeout=_SHORT_DIAL_TIMEOUT,
            request_timeout=_PATIENCE,
        ) as etcd:
            for use in (write, read):
                with trio.fail_after(2 * _SHORT_DIAL_TIMEOUT + _SLACK):
                    with pytest.raises(Unavailable) as caught:
                        await use(etcd, prefix)
                assert not isinstance(caught.value, OutcomeUnknown)


async def test_the_time_for_a_call_includes_all_members(
    servers: Servers, prefix: bytes, transport: TransportName
) -> None:
    """A short request time-out ends a call before every silent member was tried."""
    with ExitStack() as stack:
        members = [stack.enter_context(silent()) for _ in range(10)]
        async with open_etcd(
            [*members, *servers.plain.endpoints],
            transport=transport,
            dial_timeout=_SHORT_DIAL_TIMEOUT,
            request_timeout=2 * _SHORT_DIAL_TIMEOUT,
        ) as etcd:
            with (
                trio.fail_after(len(members) * _SHORT_DIAL_TIMEOUT),
                pytest.raises(Unavailable),
            ):
                await read(etcd, prefix)
            # Round by round it comes to the one that is there.
            with trio.fail_after(_PATIENCE):
                await until_it_works(etcd, prefix)
