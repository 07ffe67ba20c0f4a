"""Whether an endpoint can be reached, and the reason if it cannot."""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import msgspec
import trio

from etcd_actions.doctor import probe
from etcd_actions.doctor.findings import Finding, Kind
from etcd_actions.doctor.subject import Subject
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.connection_settings import Tls
from etcd_actions.etcd.endpoints import Endpoint

REACHABLE = Kind.ok("reachable")
NO_ADDRESS = Kind.error(
    "no-address",
    "The host name has no address.",
    "correct --endpoints, or the name's entry in DNS: getent hosts <host>",
)
REFUSED = Kind.error(
    "connection-refused",
    "The host is up, and nothing listens on the port.",
    "start etcd, or correct the port in --endpoints; etcd listens at its --listen-client-urls",
)
NO_CONNECTION = Kind.error(
    "no-connection",
    "The machine cannot be reached.",
    "check that it is up and that no firewall blocks port <port>: nc -vz <host> <port>",
)
TLS_EXPECTED = Kind.error(
    "tls-expected",
    "etcd accepts only encrypted connections, and the settings have plain ones.",
    "write https://<endpoint> in --endpoints, and name the authority with --cacert",
)
TLS_NOT_SPOKEN = Kind.error(
    "tls-not-spoken",
    "The settings have encrypted connections, and etcd accepts only plain ones.",
    "write http://<endpoint> in --endpoints and omit --cacert, --cert and --key, or give etcd "
    "--cert-file and --key-file and https:// in --listen-client-urls",
)
UNTRUSTED = Kind.error(
    "certificate-untrusted",
    "etcd's certificate is not signed by a trusted authority.",
    "give the file of the authority that signed it as --cacert",
)
WRONG_NAME = Kind.error(
    "certificate-wrong-name",
    "etcd's certificate is valid, but not for this host.",
    "use one of its names in --endpoints, give one as --tls-server-name, or make a certificate "
    "that has <name> among its names",
)
EXPIRED = Kind.error(
    "certificate-expired",
    "etcd's certificate is not valid at this time.",
    "replace etcd's --cert-file by a renewed one; if the certificate is valid today, correct "
    "this machine's clock",
)
EXPIRES_SOON = Kind.warning(
    "certificate-expires-soon",
    "Once etcd's certificate has expired, no connection can be opened.",
    "replace etcd's --cert-file by a renewed one; etcd reads it again",
)
NOT_VERIFIED = Kind.warning(
    "certificate-not-verified",
    "Any machine between this one and etcd can read and change everything.",
    "omit --insecure-skip-tls-verify, and name the authority with --cacert",
)
CLIENT_CERTIFICATE_REQUIRED = Kind.error(
    "client-certificate-required",
    "etcd requires a client certificate, and the settings have none.",
    "give --cert and --key, signed by the authority in etcd's --trusted-ca-file",
)
CLIENT_CERTIFICATE_REFUSED = Kind.error(
    "client-certificate-refused",
    "etcd does not accept our certificate: it is expired, not for clients, or signed by another "
    "authority than etcd trusts.",
    "openssl x509 -in <cert> -noout -dates -issuer -ext extendedKeyUsage; compare the issuer with "
    "etcd's --trusted-ca-file",
)
TLS_FAILED = Kind.error(
    "tls-failed",
    "The TLS handshake failed.",
    "openssl s_client -connect <endpoint>",
)
FILE_UNUSABLE = Kind.error(
    "tls-file-unusable",
    "A file that the settings name cannot be used.",
    "correct the file, or the setting that names it",
)
NO_ANSWER = Kind.error(
    "no-answer",
    "The endpoint accepts connections, and does not answer etcd's API.",
    "check whether its process is stopped (ps shows state T: kill -SIGCONT), whether its log "
    "reports slow disks, whether it is an etcd, and whether a proxy in front of it passes HTTP/2; "
    "if only HTTP/1.1 passes, use --transport gateway",
)

# X509_V_ERR_* of OpenSSL.
_NOT_YET_VALID, _HAS_EXPIRED = 9, 10
_HOST_MISMATCH, _ADDRESS_MISMATCH = 62, 64

_ALERT_SECONDS = 1.0
_NO_STREAM = (OSError, trio.BrokenResourceError)


class Reached(NamedTuple):
    """An endpoint that accepts connections.

    Attributes:
        endpoint: Its address.
        version: etcd's version; None if the endpoint serves no HTTP pages.
        skew: Seconds by which its clock is ahead of ours; None if the endpoint sends no date.
    """

    endpoint: Endpoint
    version: str | None = None
    skew: float | None = None


async def check_reach(subject: Subject, endpoint: Endpoint) -> tuple[Reached | None, list[Finding]]:
    """Connect to one endpoint, and read its version over HTTP; None if it cannot be used."""
    tls = subject.settings.tls_for(endpoint)
    try:
        context = None if tls is None else probe.verifying_context(tls)
    except ConfigError as error:
        return None, [FILE_UNUSABLE.found(str(error), subject=endpoint)]
    reached = Reached(endpoint)
    seen = ""
    failure: Exception | None = None
    findings: list[Finding] = []
    began = trio.current_time()
    with trio.move_on_after(subject.settings.dial_timeout):
        try:
            async with probe.open_stream(
                endpoint, context, tls.server_name if tls else None
            ) as stream:
                took = f"connected in {(trio.current_time() - began) * 1000:.0f} ms"
                seen = f"{took}, plain"
                if isinstance(stream, trio.SSLStream):
                    seen = f"{took}, encrypted by {stream.version()}"
                    findings += _judge_certificate(subject, endpoint, stream)
                reached = await _read_version(subject, endpoint, stream)
        except OSError as error:
            return None, [_no_connection(endpoint, error)]
        except (trio.BrokenResourceError, ValueError) as error:
            failure = error
    if reached.version is None:
        # It may serve no HTTP pages; `check_member` calls it over gRPC.
        bad = await _why_silent(subject, endpoint, tls, connected=bool(seen), failure=failure)
        if bad is not None:
            return None, [bad]
    return reached, [REACHABLE.found(seen, subject=endpoint), *findings]


async def _why_silent(
    subject: Subject,
    endpoint: Endpoint,
    tls: Tls | None,
    *,
    connected: bool,
    failure: Exception | None,
) -> Finding | None:
    """The problem of an endpoint without a version page; None if it may be usable."""
    if tls is None:
        if await _speaks_tls(subject, endpoint):
            seen = "a plain request is not answered, and a TLS handshake is"
            return TLS_EXPECTED.found(seen, subject=endpoint)
    elif failure is not None and not connected:
        return await _why_not_encrypted(subject, endpoint, tls, failure)
    elif connected and (alert := await _read_alert(subject, endpoint, tls, failure)) is not None:
        return await _why_not_encrypted(subject, endpoint, tls, alert)
    if connected:
        return None
    seen = f"no connection within {subject.settings.dial_timeout:g} s"
    if tls is not None and await _speaks_plain(subject, endpoint):
        return TLS_NOT_SPOKEN.found(f"{seen}; a plain request is answered", subject=endpoint)
    if tls is not None and await _accepts(subject, endpoint):
        # As one whose process is stopped: its system still completes connections.
        within = subject.settings.dial_timeout
        seen = f"it accepts connections, and no TLS handshake within {within:g} s"
        return NO_ANSWER.found(seen, subject=endpoint)
    return NO_CONNECTION.found(seen, subject=endpoint)


async def _read_alert(
    subject: Subject, endpoint: Endpoint, tls: Tls, failure: Exception | None
) -> Exception | None:
    """The alert by which a server refuses a client after the handshake of TLS 1.3.

    A request on the same connection can reset it before the alert arrives.
    """
    if failure is not None and isinstance(failure.__cause__, ssl.SSLError):
        return failure
    with trio.move_on_after(_ALERT_SECONDS):
        try:
            context = probe.verifying_context(tls)
            async with probe.open_stream(endpoint, context, tls.server_name) as stream:
                await stream.receive_some(1)
        except trio.BrokenResourceError as error:
            return error if isinstance(error.__cause__, ssl.SSLError) else None
        except OSError:
            return None
    return None


async def _read_version(subject: Subject, endpoint: Endpoint, stream: trio.abc.Stream) -> Reached:
    before = subject.clock()
    page = await probe.get(stream, endpoint, "/version")
    after = subject.clock()
    try:
        answer = msgspec.json.decode(page.body, type=dict[str, str]) if page.status == 200 else {}
    except msgspec.MsgspecError:
        answer = {}
    skew = None
    if answer and (date := page.headers.get("date")):
        # The date has no fraction of a second: half of one makes the error smallest.
        there = parsedate_to_datetime(date).timestamp() + 0.5
        skew = there - (before + after) / 2
    return Reached(endpoint, answer.get("etcdserver"), skew)


def _judge_certificate(
    subject: Subject, endpoint: Endpoint, stream: trio.SSLStream[trio.SocketStream]
) -> Iterator[Finding]:
    shown = stream.getpeercert()
    if not shown:
        yield NOT_VERIFIED.found("any certificate is accepted", subject=endpoint)
        return
    ends = ssl.cert_time_to_seconds(str(shown["notAfter"]))
    left = ends - subject.clock()
    if left < subject.limits.certificate_seconds:
        yield EXPIRES_SOON.found(
            f"it is valid until {_day(ends)}, {max(0, left) / 86_400:.1f} days from now",
            subject=endpoint,
        )


def _no_connection(endpoint: Endpoint, error: OSError) -> Finding:
    if isinstance(error, socket.gaierror):
        return NO_ADDRESS.found(error.strerror or str(error), subject=endpoint)
    numbers = {cause.errno for cause in _causes(error)}
    if errno.ECONNREFUSED in numbers:
        return REFUSED.found("it refuses connections", subject=endpoint)
    seen = "; ".join(sorted({cause.strerror or str(cause) for cause in _causes(error)}))
    return NO_CONNECTION.found(seen, subject=endpoint)


def _causes(error: BaseException) -> Iterator[OSError]:
    """The failures at each of the host's addresses."""
    if isinstance(error, BaseExceptionGroup):
        for each in error.exceptions:
            yield from _causes(each)
    elif isinstance(error.__cause__, (OSError, BaseExceptionGroup)):
        yield from _causes(error.__cause__)
    elif isinstance(error, OSError):
        yield error


async def _why_not_encrypted(
    subject: Subject, endpoint: Endpoint, tls: Tls, error: Exception
) -> Finding:
    """The finding about a failed handshake."""
    cause = error.__cause__ or error
    values = {"name": tls.server_name or endpoint.host, "cert": tls.cert}
    if isinstance(cause, ssl.SSLCertVerificationError):
        if cause.verify_code in (_HAS_EXPIRED, _NOT_YET_VALID):
            kind, describe = EXPIRED, _validity
        elif cause.verify_code in (_HOST_MISMATCH, _ADDRESS_MISMATCH):
            kind, describe = WRONG_NAME, _names
        else:
            return UNTRUSTED.found(cause.verify_message, subject=endpoint, **values)
        shown = await _read_certificate(subject, endpoint, tls)
        seen = f"{cause.verify_message}{describe(shown) if shown else ''}"
        return kind.found(seen, subject=endpoint, **values)
    reason = (getattr(cause, "reason", None) or str(cause)).replace("_", " ").lower()
    if "certificate" in reason or "unknown ca" in reason:
        kind = CLIENT_CERTIFICATE_REQUIRED if tls.cert is None else CLIENT_CERTIFICATE_REFUSED
        return kind.found(f"etcd ends the handshake: {reason}", subject=endpoint, **values)
    if await _speaks_plain(subject, endpoint):
        return TLS_NOT_SPOKEN.found(
            f"a TLS handshake fails ({reason}); a plain request is answered",
            subject=endpoint,
        )
    return TLS_FAILED.found(reason, subject=endpoint, **values)


async def _read_certificate(subject: Subject, endpoint: Endpoint, tls: Tls) -> dict[str, object]:
    """The contents of a trusted certificate whose time or name is wrong; empty if unknown."""
    context = probe.verifying_context(tls)
    context.check_hostname = False
    context.verify_flags |= probe.NO_CHECK_TIME
    with trio.move_on_after(subject.settings.dial_timeout), suppress(*_NO_STREAM):
        async with probe.open_stream(endpoint, context, tls.server_name) as stream:
            if isinstance(stream, trio.SSLStream):
                return dict(stream.getpeercert() or {})
    return {}


def _validity(shown: dict[str, object]) -> str:
    first, last = (
        _day(ssl.cert_time_to_seconds(str(shown[name]))) for name in ("notBefore", "notAfter")
    )
    return f": it is valid from {first} to {last}"


def _names(shown: dict[str, object]) -> str:
    names = shown.get("subjectAltName", ())
    assert isinstance(names, tuple)
    return f": its names are {', '.join(name for _, name in names) or 'none'}"


async def _speaks_tls(subject: Subject, endpoint: Endpoint) -> bool:
    context = probe.verifying_context(Tls(skip_verify=True))
    with trio.move_on_after(subject.settings.dial_timeout):
        try:
            async with probe.open_stream(endpoint, context):
                return True
        except (OSError, trio.BrokenResourceError) as error:
            # An alert about our certificate proves TLS, too.
            return "ALERT" in str(getattr(error.__cause__, "reason", ""))
    return False


async def _accepts(subject: Subject, endpoint: Endpoint) -> bool:
    with trio.move_on_after(subject.settings.dial_timeout), suppress(*_NO_STREAM):
        async with probe.open_stream(endpoint, None):
            return True
    return False


async def _speaks_plain(subject: Subject, endpoint: Endpoint) -> bool:
    with trio.move_on_after(subject.settings.dial_timeout), suppress(*_NO_STREAM, ValueError):
        async with probe.open_stream(endpoint, None) as stream:
            return (await probe.get(stream, endpoint, "/version")).status == 200
    return False


def _day(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
