"""Which actions a worker runs, if there are several workers.

Each worker announces its offer, by a key on the lease of its claims. An action that fits is claimed
by one of them: at first the workers have an order that differs from action to action, so that they
do not all claim it, and an idle one gets what a busy one leaves. The claim decides.

An action that does not fit now is blocked until another ends. One that never fits here is left to
others, and if it fits no live worker, one of them reports that it waits for resources.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
from typing import Final
from zlib import crc32

import msgspec
import structlog

from etcd_actions.actions.status import ActionStatus
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.errors import ActionError, DecodeError, InvalidArgument
from etcd_actions.executor.attempts.attempt_directory import directory_of
from etcd_actions.executor.lost_attempts import STARTED
from etcd_actions.executor.offers import Needs, Offer, is_within
from etcd_actions.executor.shared import RunningAction, Shared
from etcd_actions.executor.task_templates import template_of
from etcd_actions.model import NO_WORKER_FITS, Phase
from etcd_actions.storage.claims import Claims

_HEAD_START: Final = 0.05
"""Seconds between the claims of two workers for a new action; the jitter is at most as long."""
_MOST_BEFORE: Final = 4
"""The most workers for which this one waits before it claims a new action."""
_AGE_PENALTY: Final = 100
"""The revisions by which an action counts as younger for each of these workers."""
_PATIENCE: Final = 30.0
"""Seconds for which an action has to be blocked before other actions wait for it."""

_log = structlog.get_logger(__name__)
_decoder: Final = msgspec.json.Decoder(Offer)


class Placement:
    """Decides which actions this worker runs, leaves to other workers, or cannot start now.

    Args:
        shared: The parts of the executor.
        claims: Has the lease of the offer.
        offer: The offer of this worker.

    Attributes:
        unplaced: Number of actions that fit no live worker.
    """

    def __init__(self, shared: Shared, claims: Claims, offer: Offer) -> None:
        self._shared = shared
        self._claims = claims
        self._offer = offer
        self._own = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._key = shared.client.keys.workers + self._own.encode()
        self._workers: dict[str, Offer] = {self._own: offer}
        self._needs: dict[str, Needs] = {}
        # The actions that fit here later, and since when each is blocked, on the executor's clock.
        self._blocked: dict[str, float] = {}
        # The actions that never fit here, and whether this worker has reported them.
        self._unfit: dict[str, bool] = {}
        # The needs of the actions that run here.
        self._taken: dict[str, Needs] = {}
        # Actions whose phase is that of a started attempt, but which no worker has claimed.
        self._unclaimed: set[str] = set()
        self.unplaced = 0

    @property
    def blocked(self) -> int:
        """The number of actions that fit this worker once another action has ended."""
        return len(self._blocked)

    async def refresh(self) -> None:
        """Exchange offers with the other workers, and report the actions that fit none of them.

        Raises:
            EtcdError: etcd cannot be read or written.
        """
        text = msgspec.json.encode(self._offer).decode()
        await self._claims.reserve(self._key, text)
        found = await self._claims.reserved(self._shared.client.keys.workers)
        workers = {self._own: self._offer}
        for key, subject in found.items():
            name = key.rpartition(b"/")[2].decode(errors="replace")
            try:
                workers[name] = _decoder.decode(subject)
            except msgspec.MsgspecError as error:
                _log.debug("offer_unreadable", worker=name, error=str(error))
        self._workers = workers
        await self._report_unplaced()

    def admits(self, action: StoredAction, work: RunningAction) -> bool:
        """Whether an action, as it was read, may be claimed here now; notes what it needs.

        If not, it is noted as blocked, or as one that never fits here. ``work.elsewhere`` is set if
        another worker has it.
        """
        name = work.name
        number = max(action.status.attempts, 1)
        place = directory_of(self._shared.settings.state_dir, action.incarnation, number)
        if action.is_terminal or place.path.is_dir():
            return True
        if action.phase in STARTED and name not in self._unclaimed:
            work.elsewhere = True
            return False
        if not work.has_slot:
            return True
        try:
            needs = Needs.of(action, template_of(action))
        except (DecodeError, InvalidArgument):
            # Its attempt fails with this error.
            return True
        self._needs[name] = needs
        if not self._offer.fits(needs):
            self._unfit.setdefault(name, False)
            return False
        if not self._fits_now(needs):
            self._blocked.setdefault(name, self._shared.clock.monotonic())
            return False
        self._blocked.pop(name, None)
        self._taken[name] = needs
        return True

    def does_not_fit(self, name: str) -> bool:
        """Whether an action does not fit here, now or ever; unblocks one that runs elsewhere."""
        if name in self._blocked and self.is_elsewhere(name):
            del self._blocked[name]
        return name in self._blocked or name in self._unfit

    def note_ended(self, name: str) -> None:
        """Note that an action does not run here any more: its resources are free."""
        self._taken.pop(name, None)

    def forget(self, name: str) -> None:
        """Forget an action that has ended, or that another worker has."""
        self._blocked.pop(name, None)
        self._unfit.pop(name, None)
        self._needs.pop(name, None)
        self._unclaimed.discard(name)

    def note_unclaimed(self, name: str) -> None:
        """Note that no worker has claimed an action."""
        self._unclaimed.add(name)

    def is_elsewhere(self, name: str) -> bool:
        """Whether another worker runs an action, which does not run here, by its phase."""
        known = self._shared.board.get(name)
        return known is not None and known.update.phase in STARTED and name not in self._unclaimed

    def unblocked(self) -> list[str]:
        """The blocked actions that fit now, in the order in which they were blocked."""
        return [name for name in self._blocked if self._fits_now(self._needs[name])]

    def must_wait(self, name: str) -> bool:
        """Whether an action must not start before one that has been blocked for long.

        Deeper actions need not wait: others wait for them. No action waits for a blocked one that
        needs GPUs: the GPUs may be held by an ancestor of the very action that would wait.
        """
        since = self._shared.clock.monotonic() - _PATIENCE
        known = self._shared.board.get(name)
        for blocked, began in self._blocked.items():
            first = self._shared.board.get(blocked)
            if began > since or first is None or self._needs[blocked].gpus:
                continue
            if known is not None and known.depth <= first.depth:
                return True
        return False

    def head_start(self, name: str) -> float:
        """Seconds for which other workers may claim a new action first."""
        before = self._workers_before(name)
        if not before:
            return 0.0
        return (min(before, _MOST_BEFORE) + random.random()) * _HEAD_START

    def age_penalty(self, name: str) -> int:
        """How much younger an action counts here than it is, in revisions.

        So workers that get slots at the same time claim different actions of about the same age.
        """
        return min(self._workers_before(name), _MOST_BEFORE) * _AGE_PENALTY

    def _workers_before(self, name: str) -> int:
        """The number of workers that are before this one in the order of an action."""
        needs, own = self._needs.get(name), _rank(self._own, name)
        return sum(
            _rank(other, name) > own
            for other, offer in self._workers.items()
            if other != self._own and (needs is None or offer.fits(needs))
        )

    def _fits_now(self, needs: Needs) -> bool:
        """Whether an action fits together with those that run here.

        An action that waits for its children occupies its GPUs, and no CPUs and memory.
        """
        gpus, cpus, memory = needs.gpus, needs.cpus, needs.memory
        for name, held in self._taken.items():
            gpus += held.gpus
            if not self._shared.board.is_waiting(name):
                cpus, memory = cpus + held.cpus, memory + held.memory
        offer = self._offer
        return (
            is_within(gpus, offer.gpus)
            and is_within(cpus, offer.cpus)
            and is_within(memory, offer.memory)
        )

    async def _report_unplaced(self) -> None:
        """Report the actions that fit no live worker; one worker does it for all."""
        unplaced = 0
        for name, reported in list(self._unfit.items()):
            known, needs = self._shared.board.get(name), self._needs[name]
            if known is None or any(offer.fits(needs) for offer in self._workers.values()):
                self._unfit[name] = False
                continue
            unplaced += 1
            if reported or self._own != min(self._workers):
                continue
            flags = needs.flags
            _log.warning("no_worker_fits", action=name, remedy=f"etcd-actions worker {flags}")
            update = known.update
            try:
                await self._shared.client.put_status(
                    update.action_id,
                    max(update.attempts, 1),
                    ActionStatus(Phase.WAITING_FOR_RESOURCES),
                    message=f"{NO_WORKER_FITS}: start one with {flags}",
                    incarnation=update.incarnation,
                )
            except ActionError as error:
                # It was aborted, or a new worker has started it.
                _log.debug("not_reported", action=name, reason=str(error))
            if name in self._unfit:
                self._unfit[name] = True
        self.unplaced = unplaced


def _rank(worker: str, name: str) -> int:
    return crc32(f"{worker}/{name}".encode())
