"""The endpoint that the SDK of ``submit`` calls: the service, or a front door of our own."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from etcd_actions.blobs import BlobStore, open_blob_store
from etcd_actions.cli.backends import open_etcd_reader, open_reader
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.service_address import address_of_service
from etcd_actions.config import Config, settings
from etcd_actions.embedded.data_directory import default_data_dir
from etcd_actions.errors import ConfigError
from etcd_actions.web import Bind

if TYPE_CHECKING:
    from etcd_actions.cli.reader import Reader
    from etcd_actions.etcd.endpoints import Endpoint

_ROOT = 0
# Seconds of silence after which a stream sends a message.
_KEEPALIVE = 30.0


class RunEndpoint(NamedTuple):
    """A reader of the created run, and the SDK's connection to the service."""

    reader: Reader
    connection: dict[str, Any]


@asynccontextmanager
async def open_run_endpoint(
    common: CommonOptions, output_base: str | None
) -> AsyncIterator[RunEndpoint]:
    """The service that the settings name, else our own services on the etcd of the settings.

    Our own services listen on the loopback interface, for this user, while the context is open.

    Args:
        common: The settings.
        output_base: The directory of the run's outputs, and with our own services of its inputs;
            None for the blob store.

    Raises:
        ConfigError: There is no store for the files of runs, or a token cannot be sent.
        EtcdError: etcd does not respond.
    """
    config = common.config
    if config[settings.SERVICE] is not None:
        connection = _connection(config, await address_of_service(config))
        async with open_reader(common) as reader:
            yield RunEndpoint(reader, connection)
        return
    store = await trio.to_thread.run_sync(_store, config, output_base)
    from etcd_actions.server import ServerSettings, open_actions_server  # noqa: PLC0415
    from etcd_actions.server.front import FrontDoor  # noqa: PLC0415

    served = ServerSettings(
        bind=Bind("127.0.0.1", 0), rate=0, users=frozenset({os.geteuid(), _ROOT})
    )
    async with open_etcd_reader(common) as (client, reader):
        # Checked before the SDK starts, which takes seconds and cannot name the etcd.
        await client.store.get(client.keys.runs)
        front = FrontDoor(client=client, keepalive=_KEEPALIVE, blobs=store, reads_local_files=True)
        async with open_actions_server(client, served, front=front, announce=False) as server:
            connection = {"endpoint": f"http://{server.address}", "insecure": True}
            yield RunEndpoint(reader, connection)


def _connection(config: Config, service: Endpoint) -> dict[str, Any]:
    cacert, token_file = config[settings.SERVICE_CACERT], config[settings.SERVICE_TOKEN_FILE]
    if not service.encrypted and cacert is None:
        if token_file is not None:
            raise ConfigError(
                f"{settings.SERVICE_TOKEN_FILE.flag}: the SDK sends no token without TLS: use TLS "
                f"in the service, and write https:// before {settings.SERVICE.flag} {service}"
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
    where: Path | str | None = output_base or config[settings.BLOB_DIR]
    flag = "--output-base" if output_base else settings.BLOB_DIR.flag
    try:
        where = default_data_dir().with_name("blobs") if where is None else where
        if isinstance(where, Path) or output_base:
            where = Path(where).expanduser().absolute()
    except (ConfigError, OSError, RuntimeError):
        raise ConfigError(
            "there is no default directory for the run's files, as this user has no home "
            "directory, or it cannot be found: give one with --output-base, or set HOME"
        ) from None
    try:
        return open_blob_store(where)
    except ConfigError as error:
        raise ConfigError(f"{flag}: {error}") from None
