"""The process' descriptors, and the share of them for connections."""

from __future__ import annotations

import resource

import structlog

from etcd_actions.errors import ConfigError
from etcd_actions.web.http_limits import HttpLimits

_MOST_CONNECTIONS = 10_000
# macOS rejects an unlimited hard limit as the soft limit; it accepts OPEN_MAX.
_OPEN_MAX = 10_240
# The reserve is computed from at least this number of descriptors.
_USUAL_LEAST = 256

_log = structlog.get_logger(__name__)


def raise_limit() -> int:
    """Raise the process' soft limit of descriptors as far as it may; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for target in (hard, _OPEN_MAX):
        if not _is_more(target, than=soft):
            continue
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
        except (OSError, ValueError) as error:
            _log.debug("descriptor_limit_kept", target=target, error=str(error))
        else:
            break
    return limit()


def limit() -> int:
    """The number of descriptors that the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**30 if soft == resource.RLIM_INFINITY else soft


def ceiling(limits: HttpLimits) -> int:
    """The first descriptor that no connection may have.

    The system assigns the lowest free descriptor, so the rest is reserved for other uses. Below the
    usual limits the reserve is a larger share, up to twice as much.
    """
    most = limit()
    return most - round(limits.reserve * max(most, min(_USUAL_LEAST, 2 * most)))


def most_connections(limits: HttpLimits, flag: str) -> int:
    """The number of connections that a listener may have.

    Raises:
        ConfigError: The setting exceeds the descriptors.
    """
    if limits.connections is None:
        return max(1, min(_MOST_CONNECTIONS, limit() // 2))
    if limits.connections > ceiling(limits):
        raise ConfigError(
            f"{flag}: {limits.connections} connections need more than the {limit()} descriptors "
            f"that this process may have, some of which are kept for etcd: allow "
            f"{ceiling(limits)} connections at most, or raise the limit (ulimit -n, LimitNOFILE)"
        )
    return limits.connections


def _is_more(target: int, *, than: int) -> bool:
    if than == resource.RLIM_INFINITY:
        return False
    return target == resource.RLIM_INFINITY or target > than
