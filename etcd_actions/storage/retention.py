"""How long recorded actions stay: etcd leases that expire them.

A subscriber that comes back finds in its snapshot what ended while it was away, so a recorded
action is not deleted at once. It gets a lease with the write that marks it, and etcd deletes
it when the lease ends. A lease is shared by all that is marked within some time, its *bucket*:
a lease for each would cost etcd more than the objects. It is never renewed, and outlives this
process; another process begins with another one.

A lease is never too short: it lasts for the whole time from the end of its bucket on, and for
as long again as a write may take to arrive. An object that is written anew without a lease
(by a Kubernetes API server, always; or made again under its name) is detached from it and
stays.

An action expires whatever goes on below it, as Flyte's own collector deletes it: the time is
one from its end. What is below it has lost its parent then, and is aborted and deleted
(:mod:`etcd_actions.actions.orphans`), which the log says of each. Whether anything goes on
below an action only a walk through its whole run tells, at each mark.
"""

from __future__ import annotations

import copy
import math
from typing import Final

import trio

from etcd_actions.errors import ConfigError, EtcdError, OutcomeUnknown, Unavailable
from etcd_actions.etcd.api import Etcd

_LONGEST: Final = 9_000_000_000
"""Seconds; what etcd takes for a lease."""


class Retention:
    """Leases for what is recorded.

    Args:
        etcd: Where they are granted.
        seconds: For how long recorded actions are kept, at least.
        write: For how many seconds a write may be under way; leases last longer by so much.

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
        """The lease of what is marked now.

        One that is cancelled leaves at most a lease behind that nothing is attached to.

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
        """A lease is not there any more: grant another when one is asked for."""
        if lease == self._lease:
            self._until = -math.inf

    async def _renew(self) -> None:
        grant = self._grant = _Grant()
        # Before it is asked for, so that etcd's clock for it starts later.
        asked = trio.current_time()
        try:
            lease = await self._etcd.lease_grant(self._ttl)
        except OutcomeUnknown as error:
            grant.error = Unavailable(str(error))
            raise grant.error from None
        except EtcdError as error:
            grant.error = error
            raise
        else:
            self._lease, self._until = lease.id, asked + self._bucket
            self._granted += 1
        finally:
            self._grant = None
            grant.done.set()


class _Grant:
    """One request for a lease, and those who wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.error: EtcdError | None = None
