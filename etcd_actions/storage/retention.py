"""How long recorded actions are kept: etcd leases that expire them.

A subscriber that reconnects finds in its snapshot what ended in between, so a recorded action is
not deleted at once. The transaction of its mark attaches it to a lease, and etcd deletes it when
that ends. All actions that are marked within some time, a *bucket*, share a lease: one for each
would cost etcd more than the objects. A lease is never renewed, and outlives this process.

A lease is never too short: it lasts for the full time from the end of its bucket, and for the
time that a write may take to arrive. An object that is written without a lease (by a Kubernetes API
server, always; or created again under its name) is detached from it and stays.

An action expires whatever runs below it, as Flyte's own collector deletes it: the time counts from
its end. What is below it is an orphan then, and is aborted and deleted
(:mod:`etcd_actions.actions.orphans`), which is logged for each. Only a walk through all of the run
tree at each mark could prevent that.
"""

from __future__ import annotations

import copy
import math
from typing import Final

import trio

from etcd_actions.errors import ConfigError, EtcdError, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Etcd

_LONGEST: Final = 9_000_000_000
"""Seconds; the longest lease of etcd."""


class Retention:
    """Leases for recorded actions.

    Args:
        etcd: Grants them.
        seconds: How long recorded actions are kept, at least.
        write: Seconds that a write may take to arrive; leases last longer by that.

    Raises:
        ConfigError: ``seconds`` is not a time that etcd can keep.
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
        """How many leases were granted so far."""
        return self._granted

    async def lease(self) -> int:
        """The lease for an action that is marked now.

        Cancelled, it leaves at most a lease that nothing is attached to.

        Raises:
            EtcdError: etcd granted none.
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
        """A lease does not exist any more: the next call of :meth:`lease` grants another."""
        if lease == self._lease:
            self._until = -math.inf

    async def _renew(self) -> None:
        grant = self._grant = _Grant()
        # Before the request, so that etcd's clock for it starts later.
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
    """One request for a lease, which several tasks wait for."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: EtcdError | None = None
