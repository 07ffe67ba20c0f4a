"""How actions are run on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from etcd_actions._internal.secret_sources import SecretSource
from etcd_actions.executor.image_settings import ImageSettings


@dataclass(frozen=True, kw_only=True)
class ExecutorSettings:
    """How an executor works. Times are in seconds.

    Attributes:
        python: The interpreter that has Flyte's SDK.
        service: Where the tasks find Flyte's ActionsService, ``host:port``.
        state_dir: Where locks, logs and what is known of attempts are kept. Executors of one
            machine that may take over from each other have the same.
        fork_server: Whether the SDK's commands are started by a process that has imported it.
        slots: How many actions run at once. One that waits for its children does not count.
        memory: How many bytes the actions may use together before no more are started; None
            for no limit. One is always let run.
        claim_ttl: After so long without a sign of life another executor takes over.
        kill_grace: How long an aborted action may take to end before it is killed.
        log_bytes: How much of an attempt's log is kept, at most, while it grows and afterwards.
        keep: For how long what is known of an attempt is kept once it has ended.
        cache_keep: For how long a cached result is kept after it was used; 0 for no cache.
        images: How environments of images are made; None to run each task in that of ``python``.
        secrets: Where the secrets are that tasks may ask for.
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
