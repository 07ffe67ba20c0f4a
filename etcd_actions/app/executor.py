"""Makes the settings of the executor from the configuration, checks them, and opens it."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from etcd_actions.app.listeners import admitted_users
from etcd_actions.client import ActionsClient
from etcd_actions.config import Config, settings
from etcd_actions.embedded.data_directory import default_data_dir
from etcd_actions.errors import ConfigError
from etcd_actions.images import Executing, ImageBuilds
from etcd_actions.images.builds import BlobExists, ReadBlob
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.web import Bind, HttpLimits, ListenerStatistics, descriptors

if TYPE_CHECKING:
    from etcd_actions.executor import Executor, ExecutorSettings, ImageSettings, Offer, RaySettings
    from etcd_actions.server.front import FrontDoor

# Seconds: the least time to live of the claims' lease.
_LEAST_TTL = 5
_MOST_CONNECTIONS = 1_000
_PR_SET_DUMPABLE = 4


def check_executor(config: Config, served: ServerSettings | None) -> bool:
    """Whether this process runs actions.

    Raises:
        ConfigError: Any client could run commands, or the executor cannot work.
    """
    kind = config[settings.EXECUTOR]
    if kind == "none":
        return False
    if served is None:
        raise ConfigError(
            f"{settings.EXECUTOR.flag} {kind} needs the service: give {settings.LISTEN.flag} too"
        )
    if not served.bind.is_loopback and not served.is_authenticated:
        where = "here" if kind == "local" else "in the Ray cluster"
        raise ConfigError(
            f"{settings.LISTEN.flag} {served.bind}: with {settings.EXECUTOR.flag} {kind} every "
            f"client can run commands {where}: give {settings.TOKEN_FILE.flag} or "
            f"{settings.LISTEN_CLIENT_CA.flag}, or listen on 127.0.0.1"
        )
    check_machine(config)
    return True


def check_machine(config: Config) -> None:
    """Check whether an executor can work on this machine by these settings.

    Raises:
        ConfigError: It cannot.
    """
    if config[settings.EXECUTOR_CLAIM_TTL] < _LEAST_TTL:
        raise ConfigError(f"{settings.EXECUTOR_CLAIM_TTL.flag}: give {_LEAST_TTL} seconds or more")
    if config[settings.EXECUTOR] == "ray":
        _check_ray(config)
    else:
        sdk_python(config)
    _check_state_dir(state_dir_of(config))
    # A missing extra is reported before anything is started.
    import_module("etcd_actions.executor")


def _check_ray(config: Config) -> None:
    """Refuse settings that a Ray cluster cannot have.

    Raises:
        ConfigError: One is missing, or cannot be honoured.
    """
    flag = f"{settings.EXECUTOR.flag} ray"
    address = config[settings.RAY_ADDRESS]
    if address is None:
        raise ConfigError(f"{flag}: give {settings.RAY_ADDRESS.flag}, such as http://head:8265")
    for setting, remedy in (
        (settings.EXECUTOR_MEMORY, "Ray has the memory of its nodes: give each task its own"),
        (settings.TASK_SECRETS, "Ray shows the variables of jobs: set them on its nodes"),
    ):
        if config[setting] is not None:
            raise ConfigError(f"{setting.flag} is not possible with {flag}: {remedy}")
    tasks, host = config[settings.TASKS_LISTEN], urlsplit(address).hostname or ""
    if tasks is None and not Bind(host, 0).is_loopback:
        raise ConfigError(
            f"{flag} at {address}: its nodes cannot reach 127.0.0.1 here: give "
            f"{settings.TASKS_LISTEN.flag} with an address of this machine that they can reach"
        )
    if tasks is not None and (tasks.host in ("0.0.0.0", "::") or not tasks.port):
        raise ConfigError(
            f"{settings.TASKS_LISTEN.flag} {tasks}: tasks connect to it: give an address of this "
            "machine, and a port"
        )


def forbid_reading() -> None:
    """Hide this process's environment, memory and descriptors from other processes of its user.

    Tasks run as this user, and etcd's password can be in the environment. As root it has no
    effect. Afterwards there are no core dumps, and only root can attach a debugger.
    """
    if sys.platform.startswith("linux"):
        arguments = [ctypes.c_ulong(each) for each in (0, 0, 0, 0)]
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, *arguments)


def sdk_python(config: Config) -> Path:
    """The interpreter that has Flyte's SDK; raises ConfigError if there is no such program."""
    given = config[settings.PYTHON]
    try:
        python = Path(sys.executable) if given is None else given.absolute()
    except OSError as error:
        raise ConfigError(
            f"{settings.PYTHON.flag}: {given} cannot be found from this directory: "
            f"{error.strerror}: give an absolute path"
        ) from None
    if not os.access(python, os.X_OK) or python.is_dir():
        raise ConfigError(
            f"{settings.PYTHON.flag}: {python} is not a program: give the python with Flyte's SDK"
        )
    return python


@asynccontextmanager
async def open_local_executor(
    client: ActionsClient,
    config: Config,
    served: ServerSettings,
    address: Bind,
    front: FrontDoor | None = None,
    listeners: MutableMapping[str, Callable[[], ListenerStatistics]] | None = None,
) -> AsyncIterator[Executor]:
    """Run actions, on this machine or in a Ray cluster.

    Tasks call the service without TLS and tokens. If the service requires one of them, tasks get a
    listener of their own on the loopback interface, which only processes of this user can use.
    ``--tasks-listen`` gives that listener another address. Then every process that can connect to
    that address can use it.

    Args:
        client: The client that claims actions and reports phases.
        config: The settings.
        served: The settings of the service.
        address: Its address.
        front: The front door, which the SDK in a task calls too.
        listeners: Receives the statistics of the tasks' listener.
    """
    from etcd_actions.executor import open_executor  # noqa: PLC0415

    bind = config[settings.TASKS_LISTEN]
    own = settings_for_tasks(config, served, bind)
    if bind is None and served.tls is None and not served.demands_token:
        host = address.host if address.is_loopback else "127.0.0.1"
        at_service = executor_settings(config, Bind(host, address.port))
        async with open_executor(client, at_service) as executor:
            yield executor
        return
    async with (
        open_actions_server(client, own, front=front) as server,
        open_executor(client, executor_settings(config, server.address)) as executor,
    ):
        if listeners is not None:
            listeners["tasks"] = server.connections
        yield executor


def _connections() -> int:
    """The connections that tasks can have, in addition to those of the service."""
    return max(1, min(_MOST_CONNECTIONS, descriptors.limit() // 8))


def settings_for_tasks(
    config: Config, served: ServerSettings, bind: Bind | None = None
) -> ServerSettings:
    """The settings of a listener for tasks alone.

    Args:
        config: The settings.
        served: Has the limits.
        bind: Its address; None for the loopback interface, at a port that the system chooses.
    """
    return ServerSettings(
        bind=bind or Bind("127.0.0.1", 0),
        message_bytes=served.message_bytes,
        max_streams=served.max_streams,
        rate=0,
        request_timeout=served.request_timeout,
        keepalive=served.keepalive,
        grace=served.grace,
        http=HttpLimits(connections=_connections(), body_timeout=served.request_timeout),
        users=admitted_users(config) if bind is None or bind.is_loopback else None,
        projects=served.projects,
    )


def executor_settings(
    config: Config, service: Bind, offer: Offer | None = None
) -> ExecutorSettings:
    """The settings of the executor.

    Args:
        config: The settings.
        service: The address of the service for tasks.
        offer: The offer of a worker; None for an executor that runs each action.
    """
    from etcd_actions.executor import ExecutorSettings  # noqa: PLC0415

    secrets = config[settings.TASK_SECRETS]
    ray = _ray(config) if config[settings.EXECUTOR] == "ray" else None
    return ExecutorSettings(
        python=sdk_python(config) if ray is None else Path(sys.executable),
        service=str(service),
        state_dir=state_dir_of(config),
        fork_server=config[settings.EXECUTOR_FORK_SERVER],
        slots=config[settings.EXECUTOR_SLOTS],
        memory=config[settings.EXECUTOR_MEMORY],
        keep=config[settings.EXECUTOR_KEEP],
        cache_keep=config[settings.EXECUTOR_CACHE_KEEP],
        claim_ttl=config[settings.EXECUTOR_CLAIM_TTL],
        images=_images(config),
        secrets=() if secrets is None else secrets,
        ray=ray,
        offer=offer,
    )


def _ray(config: Config) -> RaySettings:
    from etcd_actions.executor import RaySettings  # noqa: PLC0415

    address = config[settings.RAY_ADDRESS]
    assert address is not None
    return RaySettings(
        address=address,
        token_file=config[settings.RAY_TOKEN_FILE],
        python=config[settings.PYTHON],
        images=config[settings.IMAGES],
    )


def worker_offer(config: Config) -> Offer:
    """The offer of a worker, by the settings.

    Memory and CPUs are by default the machine's. With Ray there is no limit: it has its own.

    Raises:
        ConfigError: A limit is given for Ray.
    """
    from etcd_actions.executor import Offer  # noqa: PLC0415

    labels = config[settings.LABEL]
    offer = Offer(
        slots=config[settings.EXECUTOR_SLOTS],
        cpus=None,
        memory=None,
        gpus=None,
        pools=config[settings.POOL],
        labels={} if labels is None else labels,
    )
    if config[settings.EXECUTOR] == "ray":
        for setting in (settings.CPUS, settings.GPUS):
            if config.is_given(setting):
                raise ConfigError(
                    f"{setting.flag} is not possible with {settings.EXECUTOR.flag} ray: Ray has "
                    "those of its nodes: give each task its own requests"
                )
        return offer
    memory, cpus = config[settings.EXECUTOR_MEMORY], config[settings.CPUS]
    if memory is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return msgspec.structs.replace(
        offer,
        cpus=float(_usable_cpus() if cpus is None else cpus),
        memory=float(memory),
        gpus=config[settings.GPUS],
    )


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


async def open_image_builds(
    client: ActionsClient, config: Config, read: ReadBlob, exists: BlobExists
) -> ImageBuilds | None:
    """The image builder that the SDK calls; None if every image counts as built.

    ``read`` and ``exists`` are about the files that the SDK uploaded.

    Raises:
        ConfigError: The executor's interpreter does not report its version.
    """
    lacking = config[settings.IMAGES]
    if config[settings.EXECUTOR] == "none" or lacking == "off":
        return None
    if config[settings.EXECUTOR] == "ray":
        # The nodes' Python is unknown here.
        return ImageBuilds(
            client.images, read, exists, Executing("", has_uv=False, lacking=lacking)
        )
    from etcd_actions.executor.images.image_build import find_base  # noqa: PLC0415

    python = sdk_python(config)
    try:
        base = await find_base(python)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{settings.PYTHON.flag}: {error}: give the python that has Flyte's SDK"
        ) from None
    executing = Executing(base.version, base.uv is not None, lacking)
    return ImageBuilds(client.images, read, exists, executing)


def _images(config: Config) -> ImageSettings | None:
    from etcd_actions.executor import ImageSettings  # noqa: PLC0415

    lacking = config[settings.IMAGES]
    if lacking == "off":
        return None
    given = config[settings.IMAGE_DIR]
    directory = state_dir_of(config) / "images"
    if given is not None:
        try:
            directory = given.expanduser().absolute()
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"{settings.IMAGE_DIR.flag}: it cannot be found: {error}") from None
    return ImageSettings(
        directory=directory,
        python=sdk_python(config),
        lacking=lacking,
        within=config[settings.IMAGE_TIMEOUT],
        most_bytes=config[settings.IMAGE_BYTES],
        keep=config[settings.IMAGE_KEEP],
    )


def state_dir_of(config: Config) -> Path:
    """The executor's state directory, absolute."""
    try:
        given = config[settings.EXECUTOR_STATE_DIR] or default_data_dir().with_name("executor")
        return given.expanduser().absolute()
    except ConfigError:
        raise ConfigError(
            "this user has no home directory, so the executor has no state directory: give one "
            f"with {settings.EXECUTOR_STATE_DIR.flag} or {settings.EXECUTOR_STATE_DIR.variable}, "
            "or set HOME"
        ) from None
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"{settings.EXECUTOR_STATE_DIR.flag}: the directory cannot be found: {error}: give "
            "another"
        ) from None


def _check_state_dir(directory: Path) -> None:
    """Raise ConfigError unless the directory can be created, and a file in it."""
    trial = directory / f".trial-{os.getpid()}"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        trial.touch(mode=0o600)
        trial.unlink()
    except OSError as error:
        raise ConfigError(
            f"{settings.EXECUTOR_STATE_DIR.flag}: the state directory {directory} cannot be used: "
            f"{error.strerror or error}: give one that can be written"
        ) from None
