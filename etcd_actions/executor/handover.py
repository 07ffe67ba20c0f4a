"""Ends the attempts of a worker, so that other workers can start the next ones.

A worker measures the age of its claims on its own clock. It kills its attempts before the claims
can expire in etcd. So another worker starts the next attempts only after these have ended. Attempts
that outlive their worker, as jobs of Ray do, continue: the next worker follows them.
"""

from __future__ import annotations

import signal
from typing import Final

import structlog
import trio

from etcd_actions._internal.untrusted_files import UnusableFile, in_thread
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.guarding import Guard
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.lost_attempts import WORKER_LOST, WORKER_STOPPED, note_lost
from etcd_actions.executor.shared import RunningAction, Shared
from etcd_actions.storage.claims import Claims

# Seconds between checks of the claims' deadline.
_LOOK_EVERY: Final = 0.5
# Seconds for the report of an attempt after its end.
_REPORTED_WITHIN: Final = 2.0

_log = structlog.get_logger(__name__)


class Handover:
    """Ends attempts whose actions other workers shall run.

    Args:
        shared: The parts of the executor.
        claims: The claims of the actions that run.
        attempts: Ends attempts.

    Attributes:
        draining: Whether no more actions start.
        guard: The process that ends the attempts if this one cannot; None for none.
    """

    def __init__(self, shared: Shared, claims: Claims, attempts: Attempts) -> None:
        self._shared = shared
        self._claims = claims
        self._attempts = attempts
        self.draining = False
        self.guard: Guard | None = None

    @property
    def starts_nothing(self) -> bool:
        """Whether no action may start now: the worker stops, or its claims may expire."""
        is_worker = self._shared.settings.offer is not None
        return self.draining or (is_worker and not self._claims.are_sure)

    async def watch_clock(self) -> None:
        """Kill the attempts whenever the claims may have expired; does not return."""
        while True:
            left = self._claims.deadline - trio.current_time()
            if self.guard is not None:
                self.guard.extend(left)
            if left > 0:
                # In short steps: renewals move the deadline, and a suspended machine's sleep is
                # longer than intended.
                await trio.sleep(min(left, _LOOK_EVERY))
                continue
            await self.give_up()
            await trio.sleep(_LOOK_EVERY)

    async def give_up(self) -> None:
        """Kill all attempts: their claims are lost, or may be lost soon."""
        if self._attempts.outlive_worker:
            return
        works = [work for work in self._shared.running.values() if work.place is not None]
        if not works:
            return
        _log.warning("claims_not_renewed_in_time", attempts=len(works))
        async with trio.open_nursery() as nursery:
            for work in works:
                nursery.start_soon(self._kill, work)

    async def drain(self, seconds: float) -> None:
        """Start no more attempts, wait for the running ones, then end those that still run.

        The actions of the ended attempts are queued again, for other workers. Attempts that outlive
        the worker are not waited for.

        Args:
            seconds: How long to wait.
        """
        self.draining = True
        self._shared.wake()
        if self._attempts.outlive_worker:
            return
        with trio.move_on_after(seconds):
            await self._until_idle()
        works = list(self._shared.running.values())
        async with trio.open_nursery() as nursery:
            for work in works:
                if work.place is not None:
                    nursery.start_soon(self._end, work.place)
        with trio.move_on_after(_REPORTED_WITHIN):
            await self._until_idle()

    async def _until_idle(self) -> None:
        while self._shared.running:  # noqa: ASYNC110 - the table of the running ones has no event
            await trio.sleep(0.05)

    async def _end(self, place: AttemptDirectory) -> None:
        with self._shared.client.containment.unit("attempt", str(place.path)):
            note_lost(place, WORKER_STOPPED)
            _log.info("attempt_stopped", place=str(place.path))
            await self._attempts.end(place)

    async def _kill(self, work: RunningAction) -> None:
        place = work.place
        assert place is not None
        with self._shared.client.containment.unit("attempt", str(place.path)):
            # An attempt is killed also if its loss cannot be noted.
            try:
                note_lost(place, WORKER_LOST)
            except FileNotFoundError:
                # It was not started yet.
                pass
            except OSError as error:
                _log.warning("loss_not_noted", place=str(place.path), error=str(error))
            place.kill(signal.SIGKILL)
            with trio.move_on_after(_LOOK_EVERY):
                await self._attempts.wait_ended(place)
            if place.is_alive:
                try:
                    await in_thread(_REPORTED_WITHIN, "/proc", place.kill_left_behind)
                except UnusableFile as error:
                    _log.warning("processes_not_searched", place=str(place.path), error=str(error))
        work.scope.cancel("its claim may be lost")
