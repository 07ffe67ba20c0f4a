"""Etcds with something wrong, and what the doctor says of them."""

from __future__ import annotations

import http.client
import math
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from etcd_actions.cli.commands.doctor import exit_code
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.codecs import json as json_codec
from etcd_actions.doctor import Finding, Limits, Subject, examine
from etcd_actions.etcd.connection_settings import ConnectionSettings, Tls, User
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.model import LABEL_TERMINAL_STATUS_RECORDED, NamespaceTemplate
from etcd_actions.testing import EtcdProcess
from tests.support.etcd_server import free_port

PREFIX = b"/registry/flyte.org/taskactions/"
VERSION_IDS = {"version", "version-loses-writes", "version-has-bugs", "version-has-averted-bugs"}

# How fast an etcd answers is no illness on a machine that tests share.
UNHURRIED = Limits(slow_note=math.inf, slow_warning=math.inf)

_DEADLINE = 60.0


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor said."""

    findings: Sequence[Finding]

    @property
    def code(self) -> ExitCode:
        """The exit code, versions apart."""
        return exit_code([each for each in self.findings if each.id not in VERSION_IDS])

    @property
    def ill(self) -> set[str]:
        """The ids of all that is not as it should be, versions apart."""
        return {each.id for each in self.findings if each.rank} - VERSION_IDS

    def all(self, kind: str) -> list[Finding]:
        return [finding for finding in self.findings if finding.id == kind]

    def one(self, kind: str) -> Finding:
        """The only finding of a kind."""
        (finding,) = self.all(kind)
        return finding


async def diagnose(
    endpoints: str,
    *,
    prefix: bytes = PREFIX,
    tls: Tls | None = None,
    user: User | None = None,
    template: NamespaceTemplate | None = None,
    limits: Limits = UNHURRIED,
    ahead: float = 0.0,
    dial_timeout: float = 5.0,
    request_timeout: float = 5.0,
) -> Diagnosis:
    """Examine an etcd with a clock that is ``ahead`` of the true one."""
    subject = Subject(
        settings=ConnectionSettings(
            endpoints=parse_endpoints(endpoints),
            tls=tls,
            user=user,
            dial_timeout=dial_timeout,
            request_timeout=request_timeout,
        ),
        prefix=prefix,
        template=template,
        limits=limits,
        clock=lambda: time.time() + ahead,
    )
    with trio.fail_after(_DEADLINE):
        return Diagnosis(await examine(subject))


def taskaction(
    run: str,
    action: str,
    *,
    phase: str = "Progressing",
    recorded: bool = False,
    message: str = "",
) -> bytes:
    """An object as a Kubernetes API server stores it."""
    reason = "Executing" if phase == "Progressing" else "Done"
    return json_codec.encode_tree(
        {
            "apiVersion": "flyte.org/v1",
            "kind": "TaskAction",
            "metadata": {
                "name": f"{run}-{action}",
                "namespace": "flyte",
                "labels": {LABEL_TERMINAL_STATUS_RECORDED: "true"} if recorded else {},
            },
            "spec": {"project": "p", "domain": "d", "runName": run, "actionName": action},
            "status": {
                "conditions": [
                    {"type": phase, "status": "True", "reason": reason, "message": message}
                ]
            },
        }
    )


def start_encrypted(
    directory: Path, cert: Path, key: Path, *, clients: tuple[Path, Path, Path] | None = None
) -> EtcdProcess:
    """Start an etcd that speaks TLS.

    Args:
        directory: Its own.
        cert: Its certificate.
        key: The key of that.
        clients: Who vouches for clients, which must have a certificate then; and one of
            those, with its key.
    """
    directory.mkdir(exist_ok=True)
    etcd = EtcdProcess(directory)
    url = f"https://{etcd.endpoint}"
    etcd.flags = [
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        f"--cert-file={cert}",
        f"--key-file={key}",
    ]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if clients is not None:
        authority, client_cert, client_key = clients
        etcd.flags += ["--client-cert-auth", f"--trusted-ca-file={authority}"]
        context.load_cert_chain(client_cert, client_key)
    etcd.start(wait=False)
    give_up = time.monotonic() + _DEADLINE
    while not _answers(etcd, context):
        if time.monotonic() > give_up:
            etcd.close()
            raise TimeoutError(etcd.log_file.read_text()[-2000:])
        time.sleep(0.02)  # A process rings no bell, and no trio runs here.
    return etcd


def start_cluster(directory: Path, size: int) -> list[EtcdProcess]:
    """Start members of one cluster."""
    peers = [f"http://127.0.0.1:{free_port()}" for _ in range(size)]
    cluster = ",".join(f"m{number}={peer}" for number, peer in enumerate(peers))
    members = []
    for number, peer in enumerate(peers):
        own = directory / f"m{number}"
        own.mkdir()
        flags = [
            f"--name=m{number}",
            f"--initial-cluster={cluster}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            "--heartbeat-interval=50",
            "--election-timeout=1000",
        ]
        members.append(EtcdProcess(own, flags=flags))
    for member in members:
        member.start(wait=False)
    for member in members:
        member.wait_ready()
    return members


def _answers(etcd: EtcdProcess, context: ssl.SSLContext) -> bool:
    connection = http.client.HTTPSConnection(
        etcd.address.host, etcd.port, timeout=1.0, context=context
    )
    try:
        connection.request("POST", "/v3/kv/range", '{"key":"AAAA"}', {"Connection": "close"})
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
