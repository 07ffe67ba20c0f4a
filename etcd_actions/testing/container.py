"""An etcd in a container, through testcontainers: on this machine's engine or another's."""

# ruff: noqa: D102
# The methods without a docstring are those of OwnEtcd.

from __future__ import annotations

import gc
import os
import tarfile
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from etcd_actions.errors import ConfigError, EmbeddedEtcdError
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.versions import EtcdVersion
from etcd_actions.testing.etcd_server import COMMON_FLAGS, OwnEtcd, lasting_port, version_at

if TYPE_CHECKING:
    from testcontainers.core.container import DockerContainer

DEFAULT_IMAGE = "gcr.io/etcd-development/etcd:v3.6.13"
"""The image if ``ETCD_ACTIONS_TEST_IMAGE`` names none."""

_LOOPBACK = "127.0.0.1"
_CLIENT_PORT = 2379
_DATA = "etcd-data"
_STOP_TIMEOUT = 10
_LOG_LINES = 20
# The shell's exit codes for a program that does not exist; the engine uses the same.
_NO_SUCH_PROGRAM = (126, 127)


@dataclass(frozen=True, slots=True)
class EtcdImage:
    """An image with ``etcd``, and best also ``etcdctl``, on its ``PATH``."""

    name: str

    @classmethod
    def default(cls) -> EtcdImage:
        """``$ETCD_ACTIONS_TEST_IMAGE``, else :data:`DEFAULT_IMAGE`."""
        return cls(os.environ.get("ETCD_ACTIONS_TEST_IMAGE") or DEFAULT_IMAGE)

    @property
    def where(self) -> str:
        """The image, as text for people."""
        return f"container {self.name}"

    def is_available(self) -> bool:
        """Whether the engine has it, so that nothing has to be pulled.

        Raises:
            EmbeddedEtcdError: No engine answers.
        """
        with _engine_of(self.name) as container:
            return _has(container, self.name)

    def pull(self) -> None:
        """Pull it, unless the engine has it.

        Raises:
            EmbeddedEtcdError: No engine answers, or the image cannot be pulled.
        """
        with _engine_of(self.name) as container:
            if not _has(container, self.name):
                container.get_docker_client().client.images.pull(self.name)

    def make(self, directory: Path, flags: Sequence[str] = ()) -> EtcdContainer:
        """A stopped etcd whose copies of data are in ``directory``."""
        return EtcdContainer(directory, image=self.name, flags=flags)


@final
class EtcdContainer(OwnEtcd):
    """One member as a container, with its data inside.

    The container exists from the first start to :meth:`close` or :meth:`wipe`. Its process is
    etcd: stopping etcd stops the container, and the next start restarts it. If the engine runs
    on the tests' machine, only that machine can connect.

    Attributes:
        image: The image's name.

    Args:
        directory: An existing directory for copies of the data.
        image: An image with ``etcd`` on its ``PATH``; None: ``$ETCD_ACTIONS_TEST_IMAGE``, else
            :data:`DEFAULT_IMAGE`. The first start pulls it if the engine does not have it.
        flags: Additional flags for etcd.

    Raises:
        EmbeddedEtcdError: No engine answers.
        ConfigError: testcontainers is not installed.
    """

    def __init__(
        self, directory: Path, *, image: str | None = None, flags: Sequence[str] = ()
    ) -> None:
        super().__init__(directory, flags)
        self.image: str = image or EtcdImage.default().name
        self._published = lasting_port()
        self._started_with: list[str] = []
        self._seed: Path | None = None
        self._version: EtcdVersion | None = None
        self._container: DockerContainer | None = None
        with _engine_of(self.image) as container:
            self._address = _fixed_address(container, self._published)

    @property
    def where(self) -> str:
        return f"container {self.image}"

    @property
    def version(self) -> EtcdVersion:
        if self._version is None:
            raise RuntimeError("the version of a container is known once it has been started")
        return self._version

    @property
    def address(self) -> Endpoint:
        if self._address is None:
            raise RuntimeError("the address of this container is known once it has been started")
        return self._address

    def wait_ready(self) -> None:
        super().wait_ready()
        self._version = version_at(self.address)

    def kill(self) -> None:
        with _translated(f"{self.where} cannot be killed"):
            self._running().kill("SIGKILL")
            self._running().wait()

    def stop(self) -> None:
        if self._container is None:
            return
        with _translated(f"{self.where} cannot be stopped"):
            if not self._has_ended():
                self._running().kill("SIGCONT")
                self._running().stop(timeout=_STOP_TIMEOUT)

    def suspend(self) -> None:
        with _translated(f"{self.where} cannot be suspended"):
            self._running().kill("SIGSTOP")

    def resume(self) -> None:
        with _translated(f"{self.where} cannot be resumed"):
            self._running().kill("SIGCONT")

    def wipe(self) -> None:
        self._remove()
        self._seed = None

    def save(self, name: str) -> None:
        self._copy_data(self.directory / name)

    def restore(self, name: str) -> None:
        self._remove()
        self._seed = self.directory / name

    def etcdctl(self, *arguments: str) -> str:
        command = ["etcdctl", f"--endpoints={_LOOPBACK}:{_CLIENT_PORT}", *arguments]
        with _translated(f"{self.where} cannot run etcdctl"):
            done = self._running().exec_run(command, environment={"ETCDCTL_API": "3"})
        printed: str = done.output.decode(errors="replace")
        if done.exit_code in _NO_SUCH_PROGRAM:
            raise FileNotFoundError(f"no etcdctl in {self.image}: {printed.strip()}")
        if done.exit_code != 0:
            raise RuntimeError(f"etcdctl {' '.join(arguments)}: {printed.strip()}")
        return printed

    def close(self) -> None:
        self._remove()

    def _start(self) -> None:
        if self._container is not None and self._started_with != self.flags:
            # The command of a container cannot be changed: create another with the same data.
            with tempfile.TemporaryDirectory(dir=self.directory) as copy:
                self._copy_data(Path(copy))
                self._remove()
                self._create(Path(copy))
        elif self._container is None:
            self._create(self._seed)
        else:
            with _translated(f"{self.where} could not be started"):
                self._running().start()
        assert self._container is not None
        with _translated(f"{self.where} has no address"):
            self._address = _address(self._container, self._published)

    def _create(self, seed: Path | None) -> None:
        """Create a container, with the data of a copy if ``seed`` is given, and start it."""
        with _translated(f"{self.where} could not be started"):
            container = _new_container(self.image)
            command = [
                *COMMON_FLAGS,
                f"--data-dir=/{_DATA}",
                f"--listen-client-urls=http://0.0.0.0:{_CLIENT_PORT}",
                f"--advertise-client-urls=http://{_LOOPBACK}:{_CLIENT_PORT}",
                *self.flags,
            ]
            # Images differ in their entry point and its user.
            container.with_command(command).with_kwargs(entrypoint=["etcd"], user="0")
            _publish(container, self._published)
            if seed is not None:
                container.with_copy_into_container(seed / _DATA, "/")
            try:
                container.start()
            except BaseException:
                container.stop()
                raise
        self._container = container
        self._started_with = list(self.flags)

    def _copy_data(self, directory: Path) -> None:
        with (
            _translated(f"the data of {self.where} cannot be copied"),
            tempfile.TemporaryFile(dir=self.directory) as file,
        ):
            chunks, _ = self._running().get_archive(f"/{_DATA}")
            for chunk in chunks:
                file.write(chunk)
            file.seek(0)
            with tarfile.open(fileobj=file) as archive:
                _unpack(archive, directory)

    def _remove(self) -> None:
        if self._container is not None:
            with _translated(f"{self.where} cannot be removed"):
                self._container.stop()
            self._container = None

    def _has_ended(self) -> bool:
        container = self._running()
        container.reload()
        return bool(container.status not in {"running", "paused"})

    def _log_tail(self) -> str:
        log: bytes = self._running().logs(tail=_LOG_LINES)
        return log.decode(errors="replace")

    def _running(self) -> Any:
        """The engine's own container object, running or not."""
        if self._container is None:
            raise RuntimeError("the etcd has not been started")
        return self._container.get_wrapped_container()


def engine_problem() -> str | None:
    """Why no container can be run here; None if one can."""
    try:
        with _engine_of(DEFAULT_IMAGE):
            return None
    except (ConfigError, EmbeddedEtcdError) as error:
        return str(error)


def _new_container(image: str) -> DockerContainer:
    try:
        from testcontainers.core.container import DockerContainer  # noqa: PLC0415 (an extra)
    except ImportError as error:
        raise ConfigError(
            f"containers need testcontainers: pip install 'etcd-actions[testing]' ({error})"
        ) from error

    return DockerContainer(image)


@contextmanager
def _engine_of(image: str) -> Iterator[DockerContainer]:
    """A container object without a container, for its connection to an engine that answers."""
    container, problem = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            container = _new_container(image)
            container.get_docker_client().client.ping()
        except _engine_errors() as error:
            problem = str(error)
        if problem:
            # Without an answer, the client leaves its socket to the garbage collector.
            gc.collect()
    if container is None or problem:
        raise EmbeddedEtcdError(f"no container engine answers: {problem}")
    with _translated(f"the container engine failed with {image}"):
        try:
            yield container
        finally:
            container.get_docker_client().client.close()


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Translate errors of the engine's client to this package's."""
    try:
        yield
    except _engine_errors() as error:
        raise EmbeddedEtcdError(f"{what}: {error}") from error


def _engine_errors() -> tuple[type[Exception], ...]:
    """The errors of the engine's client; evaluated only after an error, since it is an extra."""
    try:
        from docker.errors import DockerException  # type: ignore[import-untyped]  # noqa: PLC0415
    except ImportError:
        return ()
    return (DockerException, OSError)


def _has(container: DockerContainer, image: str) -> bool:
    from docker.errors import ImageNotFound  # noqa: PLC0415

    try:
        container.get_docker_client().client.images.get(image)
    except ImageNotFound:
        return False
    return True


def _publish(container: DockerContainer, port: int) -> None:
    """Publish ``port`` for clients: on the loopback interface only, if the engine is local."""
    if _is_local(container):
        container.ports[str(_CLIENT_PORT)] = (_LOOPBACK, port)  # type: ignore[assignment]
    else:
        container.with_bind_ports(_CLIENT_PORT, port)


def _is_local(container: DockerContainer) -> bool:
    address = _fixed_address(container, 0)
    return address is not None and address.host == _LOOPBACK


def _fixed_address(container: DockerContainer, port: int) -> Endpoint | None:
    """The address of ``port`` on the engine's machine; None if clients connect to the container."""
    from testcontainers.core.config import ConnectionMode  # noqa: PLC0415 (an extra)

    client = container.get_docker_client()
    if client.get_connection_mode() is not ConnectionMode.docker_host:
        return None
    host = client.host()
    return Endpoint(_LOOPBACK if host == "localhost" else host, port)


def _address(container: DockerContainer, port: int) -> Endpoint:
    """The address of the running container for clients."""
    fixed = _fixed_address(container, port)
    if fixed is not None:
        return fixed
    mode = container.get_docker_client().get_connection_mode()
    host = container.get_container_host_ip()
    return Endpoint(host, port if mode.use_mapped_port else _CLIENT_PORT)


def _unpack(archive: tarfile.TarFile, directory: Path) -> None:
    for member in archive:
        target = directory / member.name
        if member.isdir():
            target.mkdir(parents=True, exist_ok=True)
        elif (source := archive.extractfile(member)) is not None:
            with source, target.open("wb") as file:
                while chunk := source.read(1 << 20):
                    file.write(chunk)
