"""How many descriptors the process may have, and how many of them connections may take."""

from __future__ import annotations

import resource

import structlog

from etcd_actions.errors import ConfigError
from etcd_actions.web.http_limits import HttpLimits

_MOST_CONNECTIONS = 10_000
# Where the hard limit is no number that the system takes as a soft one: macOS' OPEN_MAX.
_OPEN_MAX = 10_240
# With fewer descriptors the reserve does not become smaller in proportion.
_USUAL_LEAST = 256

_log = structlog.get_logger(__name__)


def raise_limit() -> int:
    """Raise the process' soft limit of descriptors as far as it may; returns the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (hard, _OPEN_MAX):
        if not _is_more(wanted, than=soft):
            continue
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            _log.debug("descriptor_limit_kept", wanted=wanted, error=str(error))
        else:
            break
    return limit()


def limit() -> int:
    """How many descriptors the process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 2**30 if soft == resource.RLIM_INFINITY else soft


def ceiling(limits: HttpLimits) -> int:
    """The first descriptor that no connection may have.

    A system gives the lowest descriptor that is free, so the rest is kept for everything else.
    Below the usual limits the reserve is a larger share, up to twice as much. The smaller a
    listener's reserve is, the more it may have, at every limit.
    """
    most = limit()
    return most - round(limits.reserve * max(most, min(_USUAL_LEAST, 2 * most)))


def most_connections(limits: HttpLimits, flag: str) -> int:
    """How many connections a listener may have.

    Raises:
        ConfigError: More are wanted than there are descriptors for.
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


def _is_more(wanted: int, *, than: int) -> bool:
    if than == resource.RLIM_INFINITY:
        return False
    return wanted == resource.RLIM_INFINITY or wanted > than
