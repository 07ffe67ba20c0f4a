"""The first bytes of a stored value: its form, or the reason why it cannot be decoded."""

from __future__ import annotations

from typing import Final

from etcd_actions.errors import DecodeError

# Three bytes and the form's version. Neither UTF-8 text nor a foreign form below begins with 0xff.
PROTOBUF: Final = b"\xffPB\x01"
MSGPACK: Final = b"\xffMP\x01"

MAX_SIZE: Final = 8 << 20
"""Bytes; a larger value is refused. An etcd takes requests of 1.5 MiB by default."""

_OURS: Final = {PROTOBUF[:3]: "protobuf", MSGPACK[:3]: "msgpack"}

ENCRYPTED_AT_REST: Final = b"k8s:enc:"
"""The first bytes of a value that an API server encrypted."""

KUBERNETES_PROTOBUF: Final = b"k8s\0"
"""The first bytes of an API server's value of a built-in kind; custom resources are JSON."""

_FOREIGN: Final = (
    (
        ENCRYPTED_AT_REST,
        "encrypted at rest by a Kubernetes API server: take taskactions.flyte.org out of its "
        "encryption configuration and have the objects written again",
    ),
    (
        KUBERNETES_PROTOBUF,
        "Kubernetes' protobuf, which custom resources are not stored in: is the prefix that of "
        "TaskActions?",
    ),
    (
        b"\xd9\xd9\xf7",
        "CBOR, which a Kubernetes API server stores if set so: switch its feature gate "
        "CBORServingAndStorage off and have the objects written again",
    ),
    (b"\x1f\x8b", "compressed by gzip: store it as it was before"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd: store it as it was before"),
    (b"\xef\xbb\xbf", "text with a byte order mark: store it without these three bytes"),
)


def why_not(form: str, value: bytes) -> str | None:
    """The reason why a value is not of a form.

    Args:
        form: The name of the codec that should decode it.
        value: The stored bytes.

    Returns:
        The reason for a `DecodeError`; None if the first bytes fit the form.
    """
    if not value:
        return "the value is empty"
    name = "JSON" if form == "json" else form
    ours = _OURS.get(value[:3])
    if ours == form:
        return _why_not_this_version(form, value)
    if ours is not None:
        return f"the value is not {name} but {ours}, another stored form of etcd-actions"
    for magic, what in _FOREIGN:
        if value.startswith(magic):
            return f"the value is not {name} but {what}"
    if form == "json":
        return None
    if value.lstrip(b" \t\r\n").startswith(b"{"):
        return f"the value is not {name} but JSON"
    return f"the value is not {name}: it begins with {value[:4].hex(' ')}"


def _why_not_this_version(form: str, value: bytes) -> str | None:
    magic = PROTOBUF if form == "protobuf" else MSGPACK
    if value.startswith(magic):
        return None
    if len(value) < len(magic):
        return f"{form} is malformed: truncated after {len(value)} bytes"
    return (
        f"the value is {form} of version {value[3]}, and this etcd-actions reads version "
        f"{magic[3]}: update it"
    )


def check_size(value: bytes, key: bytes, revision: int) -> None:
    """Refuse a value that is too large to be decoded.

    Raises:
        DecodeError: It has more than `MAX_SIZE` bytes.
    """
    if len(value) > MAX_SIZE:
        raise DecodeError(_too_large(value), key=key, revision=revision)


def written(value: bytes) -> bytes:
    """Return an encoded value, unless it is too large to be decoded again.

    Raises:
        ValueError: It has more than `MAX_SIZE` bytes.
    """
    if len(value) > MAX_SIZE:
        raise ValueError(_too_large(value))
    return value


def _too_large(value: bytes) -> str:
    return f"{len(value)} bytes: a TaskAction may have {MAX_SIZE} at most"
