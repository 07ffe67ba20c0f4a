"""Leases that expire recorded actions after the retention time.

A recorded action is not deleted at once, so that a subscriber that reconnects finds its terminal
state in the snapshot. The transaction of the mark attaches the action to a lease, and etcd deletes
it when the lease ends. All actions that are marked within some time, a *bucket*, share a lease: one
for each action would cost etcd more than the objects. A lease is never renewed, and outlives this
process.

A lease is never too short: it lasts for the retention time after the end of its bucket, and for the
time that a write may take to arrive. A write without a lease (of a Kubernetes API server, or of an
object that is created again under the name) detaches the object from it, and the object stays.

An action expires also if actions below it still run, as Flyte's own collector deletes it. These are
then orphans: they are aborted, deleted and logged (:mod:`etcd_actions.actions.orphans`). To prevent
that, each mark would have to read the complete tree of the run.
"""

from __future__ import annotations

import copy
import math
from typing import Final

import trio

from etcd_actions.errors import ConfigError, EtcdError, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Etcd

_LONGEST: Final = 9_000_000_000
"""The longest lease of etcd, in seconds."""


class Retention:
    """Leases for recorded actions.

    Args:
        etcd: Grants the leases.
        seconds: The least time for which recorded actions are kept.
        write: The most seconds that a write may take to arrive; it is added to each lease.

    Raises:
        ConfigError: ``seconds`` is not above 0, or longer than a lease can be.
    """

    def __init__(self, etcd: Etcd, seconds: float, *, write: float = 10.0) -> None:
        bucket = max(1.0, seconds / 16)
        if not 0 < seconds <= _LONGEST - bucket - write:
            raise ConfigError(f"retain_terminal: {seconds} s is not above 0, or too long for etcd")
        self._etcd = etcd
        self._bucket = bucket
        self._ttl = math.ceil(seconds + bucket + write)
        self._lease = 0
        self._until = -math.inf
        self._grant: _Grant | None = None
        self._granted = 0

    @property
    def granted(self) -> int:
        """The number of leases that were granted."""
        return self._granted

    async def lease(self) -> int:
        """The lease for an action that is marked now.

        After a cancellation there may be a lease without keys.

        Raises:
            EtcdError: etcd granted no lease.
        """
        while trio.current_time() >= self._until:
            if self._grant is None:
                await self._renew()
            else:
                grant = self._grant
                await grant.done.wait()
                if grant.error is not None:
                    raise copy.copy(grant.error)
        return self._lease

    def lost(self, lease: int) -> None:
        """Note that a lease does not exist any more: the next :meth:`lease` requests another."""
        if lease == self._lease:
            self._until = -math.inf

    async def _renew(self) -> None:
        grant = self._grant = _Grant()
        # Before the request: etcd counts from a later time.
        requested = trio.current_time()
        try:
            lease = await self._etcd.lease_grant(self._ttl)
        except OutcomeUnknown as error:
            grant.error = Unavailable(str(error))
            raise grant.error from None
        except EtcdError as error:
            grant.error = error
            raise
        else:
            self._lease, self._until = lease.id, requested + self._bucket
            self._granted += 1
        finally:
            self._grant = None
            grant.done.set()


class _Grant:
    """A request for a lease, for which several tasks wait."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: EtcdError | None = None
