"""The settings of an executor, and of the environments of its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from etcd_actions._internal.argument_types import check_fields
from etcd_actions._internal.secret_sources import SecretSource
from etcd_actions.executor.offers import Offer


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The settings for environments of images. Times are in seconds.

    Attributes:
        directory: The directory of the environments.
        python: The interpreter of the environment whose packages all of them can import.
        lacking: Whether an image with an unsupported part is refused (``check``), or built without
            that part (``ignore``).
        within: The time limit of one build.
        most_bytes: The most bytes of all on the disk; the least recently used are removed first.
        keep: The time without use after which an environment is removed.
    """

    directory: Path
    python: Path
    lacking: Literal["check", "ignore"] = "check"
    within: float = 900.0
    most_bytes: int = 10 * 1024**3
    keep: float = 30 * 24 * 3600.0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """The settings for attempts that are jobs of Ray.

    Attributes:
        address: The URL of Ray's head, such as ``http://head:8265``.
        token_file: A file with a token for Ray's authentication; None without it.
        python: The interpreter with Flyte's SDK on the nodes; None for the SDK in their PATH.
        cpus: The CPUs of a task that requests none.
        within: The time limit of one call, in seconds.
        images: Whether Ray installs packages of images, see :class:`ImageSettings`; ``off`` ignores
            images.
    """

    address: str
    token_file: Path | None = None
    python: Path | None = None
    cpus: float = 1.0
    within: float = 10.0
    images: Literal["check", "ignore", "off"] = "check"

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """The settings of an executor. Times are in seconds.

    Attributes:
        python: The interpreter with Flyte's SDK.
        service: The address of Flyte's ActionsService for tasks, ``host:port``.
        state_dir: The directory of locks, logs and attempts. Executors of one machine that may
            take over from each other share it.
        fork_server: Whether a process that has imported the SDK starts the SDK's commands.
        slots: The number of actions that run at once. One that waits for its children does not
            count.
        memory: The limit of all actions' memory, in bytes: above it no other starts, but one may
            always run. None for no limit.
        claim_ttl: The time without a renewed claim after which another executor runs the action.
        kill_grace: The time between SIGTERM and SIGKILL for an aborted action.
        log_bytes: The most bytes of an attempt's log, while it grows and afterwards.
        keep: The time for which an attempt's directory is kept after its end.
        cache_keep: The time for which a cached result is kept after its use; 0 for no cache.
        images: The environments of images; None to run each task in that of ``python``.
        secrets: The sources of the secrets that tasks may request.
        offer: The resources of a worker, which shares the actions with others and has a state
            directory of its own; None for an executor that runs each action.
        ray: The Ray cluster that runs the attempts; None to run them on this machine.
    """

    python: Path
    service: str
    state_dir: Path
    fork_server: bool = True
    slots: int = 4
    memory: int | None = None
    claim_ttl: int = 15
    kill_grace: float = 5.0
    log_bytes: int = 10 * 1024 * 1024
    keep: float = 7 * 24 * 3600.0
    cache_keep: float = 30 * 24 * 3600.0
    images: ImageSettings | None = None
    secrets: tuple[SecretSource, ...] = ()
    offer: Offer | None = None
    ray: RaySettings | None = None

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def runs_here(self) -> bool:
        """Whether attempts run on this machine: they get a part of this process's environment."""
        return self.ray is None

    @property
    def outputs_may_be_elsewhere(self) -> bool:
        """Whether outputs may be at a URL; the executor then reads them there."""
        return not self.runs_here or self.offer is not None
