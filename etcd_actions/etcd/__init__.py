"""etcd as this package needs it: keys, values and revisions; nothing of TaskActions.

:mod:`~etcd_actions.etcd.api` is the face that the other rooms see.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.endpoints import parse_endpoints

__all__ = ["Etcd", "open_etcd"]


@asynccontextmanager
async def open_etcd(
    endpoints: str | Iterable[str] = "127.0.0.1:2379", *, request_timeout: float = 5.0
) -> AsyncIterator[Etcd]:
    """Connect to etcd.

    Nothing is sent before the first call, so an etcd that is away is no error here.

    Args:
        endpoints: ``host:port`` or ``http://host:port``, several as a list or separated by
            commas. One is used at a time, and the next one after a failure.
        request_timeout: Seconds after which a call raises
            :class:`~etcd_actions.errors.Unavailable`.

    Raises:
        ConfigError: An endpoint cannot be read.
    """
    members = parse_endpoints(endpoints)
    # Importing grpc takes tens of milliseconds, which only those who connect should pay.
    from etcd_actions.etcd.grpc import open_grpc_etcd  # noqa: PLC0415

    async with open_grpc_etcd(members, request_timeout=request_timeout) as etcd:
        yield etcd
