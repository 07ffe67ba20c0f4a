"""Reads and checks the files of a TLS connection, and explains failed handshakes."""

from __future__ import annotations

import re
import ssl
from functools import partial
from pathlib import Path

from etcd_actions._internal.named_files import read_named_file
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.connection_settings import Tls

# The certificates of all authorities of a system are some hundred KiB.
_MOST_BYTES = 16 * 1024 * 1024

_VERIFICATION = re.compile(
    r"CERTIFICATE_VERIFY_FAILED\]?(?: certificate verify failed)?(?:: (?P<why>[^:(\n]*[^:(\s]))?"
)
_OTHER_NAME = re.compile(r"(?:Hostname|IP address) mismatch")
_OWN_CERTIFICATE = re.compile(
    r"alert.(?:bad.certificate|certificate.required|unknown.ca)", re.IGNORECASE
)
_NO_TLS = re.compile(r"WRONG_VERSION_NUMBER|UNEXPECTED_EOF_WHILE_READING|record layer failure")


def check_tls(tls: Tls) -> None:
    """Read the files, and check that there are authorities.

    Raises:
        ConfigError: A file cannot be read or used; the message names it.
    """
    context = ssl_context(tls)
    if tls.ca is not None or tls.skip_verify or context.get_ca_certs(binary_form=True):
        return
    # Authorities in a directory of files are not loaded before the first use.
    if not _has_certificates(ssl.get_default_verify_paths().capath):
        raise ConfigError("tls: this system has no certificate authorities: give a ca file")


def ssl_context(tls: Tls) -> ssl.SSLContext:
    """A context that verifies certificates by ``tls``, but not the server's name.

    Raises:
        ConfigError: A file cannot be read or used; the message names it.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if tls.skip_verify:
        context.verify_mode = ssl.CERT_NONE
    elif tls.ca is None:
        context.load_default_certs()
    if tls.ca is not None:
        text = _read("ca", tls.ca)
        try:
            # Only comments can have other characters.
            context.load_verify_locations(cadata=text.decode("ascii", "ignore"))
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"tls ca {tls.ca}: not a PEM file with certificates") from None
    if tls.cert is not None and tls.key is not None:
        _read("cert", tls.cert)
        _read("key", tls.key)
        try:
            context.load_cert_chain(tls.cert, tls.key, password=partial(_no_password, tls.key))
        except (OSError, ValueError) as error:
            reason = (getattr(error, "reason", "") or "not a PEM file").replace("_", " ").lower()
            raise ConfigError(f"tls cert {tls.cert}, key {tls.key}: {reason}") from None
    return context


def client_context(tls: Tls) -> ssl.SSLContext:
    """A context for connections: it verifies name and certificate, or with ``skip_verify`` neither.

    Raises:
        ConfigError: A file cannot be read or used; the message names it.
    """
    context = ssl_context(tls)
    context.check_hostname = not tls.skip_verify
    context.hostname_checks_common_name = False
    return context


def explained(problem: str) -> str:
    """Python's text about a failed connection, explained if TLS is the cause."""
    if _OTHER_NAME.search(problem):
        return "certificate verification failed: it is for another name; see server_name"
    if found := _VERIFICATION.search(problem):
        return f"certificate verification failed: {found['why'] or 'see the ca'}"
    if _OWN_CERTIFICATE.search(problem):
        return f"the server requires a client certificate, or another one ({problem})"
    if _NO_TLS.search(problem):
        return f"the server ended the TLS handshake; does it use TLS? ({problem})"
    return problem


def read_pem_file(path: Path) -> bytes:
    """Read a file that should be in PEM.

    Raises:
        ConfigError: It cannot be read, or is in another form; the message names it.
    """
    try:
        text = read_named_file(path, _MOST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    # DER begins with a sequence, and its length of more than one byte.
    if text[:2] in (b"\x30\x80", b"\x30\x81", b"\x30\x82", b"\x30\x83"):
        raise ConfigError(
            f"{path}: not a PEM file: it is in DER: openssl x509 -inform der, or openssl pkey "
            "-inform der, writes it as PEM"
        )
    return text


def _read(what: str, path: Path) -> bytes:
    try:
        return read_pem_file(path)
    except ConfigError as error:
        raise ConfigError(f"tls {what} {error}") from None


def _has_certificates(directory: str | None) -> bool:
    files = [] if directory is None else Path(directory).iterdir()
    return any(b"BEGIN CERTIFICATE" in path.read_bytes() for path in files if path.is_file())


def _no_password(key: Path) -> str:
    raise ConfigError(f"tls key {key}: it is encrypted with a passphrase, which is not supported")
