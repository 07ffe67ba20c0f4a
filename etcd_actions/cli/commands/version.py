"""``etcd-actions version``: the versions of the program, its parts, and etcd."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import msgspec
import trio

from etcd_actions import __version__
from etcd_actions._internal.quoting import printable
from etcd_actions.cli.cluster import service_versions
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.standard_output import json_document, standard_output
from etcd_actions.cli.options import CommonOptions
from etcd_actions.config.settings import SERVICE
from etcd_actions.errors import (
    ConfigError,
    EmbeddedEtcdError,
    EtcdError,
    ServiceError,
    ServiceUnavailable,
)

_PARTS: Final = ("flyteidl2", "trio", "protobuf", "msgspec")
_WITHIN: Final = 2.0
"""Seconds for etcd to respond."""


class Versions(msgspec.Struct, kw_only=True):
    """The output of ``version``.

    Attributes:
        sdk_messages: The version of Flyte's messages, ``flyteidl2``; empty if not installed.
        service: The version of the service, with ``--service``; empty without a response.
        etcd: The version of the member that responded, or of the service's members; empty if none
            did.
        etcd_error: Why it is empty.
        parts: Installed distributions and their versions.
    """

    etcd_actions: str
    python: str
    sdk_messages: str
    service: str = ""
    etcd: str = ""
    etcd_error: str = ""
    parts: dict[str, str] = {}


async def show_versions(common: CommonOptions, output: str, client: bool) -> int:
    """Print the versions; ``client`` omits those of etcd and of the service."""
    has_service = common.config[SERVICE] is not None
    parts = {name: _installed(name) for name in _PARTS}
    found = Versions(
        etcd_actions=__version__,
        python=platform.python_version(),
        sdk_messages=parts.pop("flyteidl2"),
        parts=parts,
    )
    if not client:
        try:
            if has_service:
                found.service, found.etcd = await _service_versions(common)
            else:
                found.etcd = await _etcd_version(common)
        except (ConfigError, EmbeddedEtcdError, EtcdError, ServiceError) as error:
            found.etcd_error = str(error)
    with standard_output() as write:
        if output == "json":
            write(json_document(found))
        else:
            write(_text(found, client, has_service).encode())
    return ExitCode.OK


async def _etcd_version(common: CommonOptions) -> str:
    with trio.move_on_after(_WITHIN):
        async with common.open_etcd() as etcd:
            return (await etcd.status()).version
    raise EtcdError(f"no response within {_WITHIN:g} s")


async def _service_versions(common: CommonOptions) -> tuple[str, str]:
    with trio.move_on_after(_WITHIN):
        return await service_versions(common)
    raise ServiceUnavailable(f"the service: no response within {_WITHIN:g} s")


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _text(found: Versions, client: bool, has_service: bool) -> str:
    rows = {
        "etcd-actions": found.etcd_actions,
        "Python": found.python,
        "SDK messages": f"flyteidl2 {found.sdk_messages}" if found.sdk_messages else "",
        **found.parts,
    }
    if not client:
        if has_service:
            rows["service"] = found.service or f"unknown: {found.etcd_error}"
        rows["etcd"] = found.etcd or f"unknown: {found.etcd_error}"
    return "".join(
        f"{title:<14}{printable(text or 'not installed')}\n" for title, text in rows.items()
    )
