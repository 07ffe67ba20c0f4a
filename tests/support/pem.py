"""Keys and certificates in forms that trustme does not write."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)


def write_key_pair(private: Path, public: Path) -> None:
    """Write a new RSA key and its public half."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )


def locked(key: Path, passphrase: bytes) -> bytes:
    """The key of a file, encrypted with a passphrase."""
    loaded = load_pem_private_key(key.read_bytes(), None)
    encryption = BestAvailableEncryption(passphrase)
    return loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)


def subject_hash(certificate: Path) -> str:
    """The name, without suffix, by which OpenSSL finds a certificate in a directory.

    It is a hash of the subject in a canonical form: text in lower case, spaces collapsed, and
    no header around the sequence.
    """
    subject = x509.load_pem_x509_certificate(certificate.read_bytes()).subject
    canonical = x509.Name(
        x509.NameAttribute(each.oid, " ".join(str(each.value).lower().split())) for each in subject
    ).public_bytes()
    length = canonical[1]
    header = 2 if length < 0x80 else 2 + (length & 0x7F)
    digest = hashlib.sha1(canonical[header:], usedforsecurity=False).digest()
    return f"{int.from_bytes(digest[:4], 'little'):08x}"
