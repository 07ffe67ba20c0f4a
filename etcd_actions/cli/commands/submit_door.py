"""What the SDK of ``submit`` speaks to: the service, or a front door for this submission alone."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from etcd_actions.blobs import BlobStore, open_blob_store
from etcd_actions.cli.backends import Asked, Directly, open_asked
from etcd_actions.cli.options import CommonOptions
from etcd_actions.config import Config
from etcd_actions.config.settings import BLOB_DIR, SERVICE, SERVICE_CACERT, SERVICE_TOKEN_FILE
from etcd_actions.embedded.data_directory import default_data_dir
from etcd_actions.errors import ConfigError
from etcd_actions.web import Bind

if TYPE_CHECKING:
    from etcd_actions.etcd.endpoints import Endpoint

_ROOT = 0
_KEEPALIVE = 30.0


class Door(NamedTuple):
    """Where runs are created.

    Attributes:
        asked: Who is asked how the run goes on.
        connection: What the SDK is told to reach it.
    """

    asked: Asked
    connection: dict[str, Any]


@asynccontextmanager
async def open_door(common: CommonOptions, output_base: str | None) -> AsyncIterator[Door]:
    """The service that the settings name, else services of our own on their etcd.

    Our own listen on this machine, for this user, for as long as the context lasts.

    Args:
        common: The settings.
        output_base: Where the files of the run go; None for the store of blobs. Our own services
            keep its inputs there, too.

    Raises:
        ConfigError: There is no place for the files of runs, or a token cannot be sent.
        EtcdError: etcd does not answer.
    """
    config = common.config
    service = config[SERVICE]
    if service is not None:
        connection = _of_service(config, service)
        async with open_asked(common) as asked:
            yield Door(asked, connection)
        return
    store = await trio.to_thread.run_sync(_store, config, output_base)
    from etcd_actions.server import ServerSettings, open_actions_server  # noqa: PLC0415
    from etcd_actions.server.front import Front  # noqa: PLC0415

    settings = ServerSettings(
        bind=Bind("127.0.0.1", 0), rate=0, users=frozenset({os.geteuid(), _ROOT})
    )
    async with open_asked(common) as asked:
        assert isinstance(asked, Directly)
        # Before the SDK is started, which takes seconds and cannot say which etcd it is.
        await asked.client.store.get(asked.client.keys.runs)
        front = Front(
            client=asked.client, keepalive=_KEEPALIVE, blobs=store, reads_local_files=True
        )
        async with open_actions_server(
            asked.client, settings, front=front, announce=False
        ) as server:
            yield Door(asked, {"endpoint": f"http://{server.address}", "insecure": True})


def _of_service(config: Config, service: Endpoint) -> dict[str, Any]:
    cacert, token_file = config[SERVICE_CACERT], config[SERVICE_TOKEN_FILE]
    if not service.encrypted and cacert is None:
        if token_file is not None:
            raise ConfigError(
                f"{SERVICE_TOKEN_FILE.flag}: the SDK sends no token without TLS: have the service "
                f"use it, and write https:// before {SERVICE.flag} {service}"
            )
        return {"endpoint": f"http://{service}", "insecure": True}
    connection: dict[str, Any] = {"endpoint": f"https://{service}"}
    if cacert is not None:
        connection["ca_cert_file_path"] = str(cacert.absolute())
    if token_file is not None:
        connection["auth_type"] = "ExternalCommand"
        connection["command"] = ["cat", str(token_file.absolute())]
    return connection


def _store(config: Config, output_base: str | None) -> BlobStore:
    where: Path | str | None = output_base or config[BLOB_DIR]
    flag = "--output-base" if output_base else BLOB_DIR.flag
    try:
        where = default_data_dir().with_name("blobs") if where is None else where
        if isinstance(where, Path) or output_base:
            where = Path(where).expanduser().absolute()
    except (ConfigError, OSError, RuntimeError):
        raise ConfigError(
            "there is no default place for the run's files, as this user has no home directory, "
            "or the place is not found from this one: give one with --output-base, or set HOME"
        ) from None
    try:
        return open_blob_store(where)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
