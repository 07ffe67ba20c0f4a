"""Ends conditions that were not signalled in time, as Flyte's executor does.

Each process notes the conditions that are not terminal, and when it received each first. The leader
ends those whose time has passed. Flyte counts from ``metadata.creationTimestamp``. This module
reads the wall clock once, when a condition is received first, to compute its age. From then on the
age grows with the monotonic clock, so later changes of the wall clock have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Final, NamedTuple

import structlog
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.clock import Clock
from etcd_actions._internal.containment import Containment
from etcd_actions._internal.keyed_heap import KeyedHeap
from etcd_actions.actions.rewrite import utc_now
from etcd_actions.actions.stored_action import StoredAction, describe
from etcd_actions.codecs import codec_of
from etcd_actions.errors import ConfigError, DecodeError, EtcdError, InvalidArgument
from etcd_actions.etcd.api import KeyValue
from etcd_actions.model import ErrorState, Phase, Summary
from etcd_actions.model import flyte as conversions
from etcd_actions.model.conditions import write_phase
from etcd_actions.model.durations import age_of, limit_of
from etcd_actions.storage.store import Store

TOO_LONG: Final = ErrorState(
    code="ConditionTimedOut", kind="USER", message="it was not signalled in time"
)
"""The error of a condition that timed out; code and kind are those of Flyte's executor."""

_FIELD: Final = "spec.conditionSpec.timeout"
_BACKOFF = Backoff(initial=0.2, cap=30.0)

_log = structlog.get_logger(__name__)


class _Seen(NamedTuple):
    """One incarnation of a condition, and when it was received first, by both clocks."""

    uid: str
    create_revision: int
    monotonic: float
    wall: float


class ConditionTimeouts:
    """The conditions of a prefix that are not terminal, and when their time ends.

    Args:
        store: Reads and writes the conditions; it writes only while this process leads.
        clock: The clock of the timeouts.
        now: Returns the time to write into the object.
        containment: Counts unexpected failures.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        now: Callable[[], datetime] = utc_now,
        containment: Containment | None = None,
    ) -> None:
        self._store = store
        self._clock = clock or Clock()
        self._now = now
        self._containment = containment or Containment()
        self._open: dict[bytes, _Seen] = {}
        # When each is checked next: at once if its timeout is not known yet.
        self._due: KeyedHeap[bytes, float] = KeyedHeap()
        self._failures: dict[bytes, int] = {}
        self._changed = trio.Event()

    def __len__(self) -> int:
        """The number of conditions that are not terminal."""
        return len(self._open)

    @property
    def keys(self) -> Collection[bytes]:
        """The keys of the conditions that are not terminal."""
        return self._open.keys()

    def note(self, key: bytes, summary: Summary) -> None:
        """Note a state of a condition. Never waits."""
        if summary.is_terminal:
            self.forget(key)
            return
        known = self._open.get(key)
        if known is not None and (known.uid, known.create_revision) == (
            summary.uid,
            summary.create_revision,
        ):
            return
        now = self._clock.monotonic()
        self._open[key] = _Seen(summary.uid, summary.create_revision, now, self._clock.wall())
        self._failures.pop(key, None)
        self._look(key, now)

    def forget(self, key: bytes) -> None:
        """Forget a key that was deleted, or whose action is terminal."""
        if self._open.pop(key, None) is not None:
            self._due.remove(key)
            self._failures.pop(key, None)
            self._containment.forget("condition", _text(key))

    async def end_in_time(self) -> None:
        """End each condition when its time has passed, until cancelled.

        Each write compares the revision that was read, so a signal, an abort or another change that
        comes first has precedence. After a cancellation a condition was ended completely or not at
        all.
        """
        # They may have failed because another process led.
        for key in self._failures:
            self._look(key, self._clock.monotonic())
        self._failures.clear()
        while True:
            self._changed = trio.Event()
            now = self._clock.monotonic()
            first = self._due.first()
            if first is not None and first[1] <= now:
                await self._serve(first[0])
                continue
            if first is None:
                await self._changed.wait()
                continue
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._cancel_when_changed, nursery.cancel_scope)
                await self._clock.sleep_until(first[1])
                nursery.cancel_scope.cancel("it is time")

    async def _cancel_when_changed(self, scope: trio.CancelScope) -> None:
        await self._changed.wait()
        scope.cancel("another condition")

    async def _serve(self, key: bytes) -> None:
        """Check one condition, and schedule its next check, if there is one."""
        again: float | None = None
        seen = self._open.get(key)
        with self._containment.unit("condition", _text(key), parks=True) as unit:
            try:
                again = await self._look_at(key)
                self._failures.pop(key, None)
            except EtcdError as error:
                again = self._later(key)
                _log.debug("condition_not_ended", key=_text(key), error=str(error))
        if unit.failed:
            again = self._later(key)
        # It may be terminal by now; another incarnation has a check of its own.
        if self._open.get(key) is not seen:
            return
        if again is None:
            self._due.remove(key)
        else:
            self._look(key, again)

    def _later(self, key: bytes) -> float:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        return self._clock.monotonic() + _BACKOFF.delay(failures)

    async def _look_at(self, key: bytes) -> float | None:
        """End a condition if its time has passed; else return that time, None for no timeout."""
        kv = await self._store.get(key)
        seen = self._open.get(key)
        # The watch delivers a deletion, and another incarnation.
        if kv is None or seen is None or kv.create_revision != seen.create_revision:
            return None
        try:
            action = StoredAction.of(kv)
            # Flyte's service has stored a signal, and its executor is going to end the condition.
            if action.is_terminal or action.status.signal_value:
                return None
            ends = self._ends(action, seen)
            if ends is None or self._clock.monotonic() < ends:
                return ends
            value = self._ended(kv)
        except (DecodeError, InvalidArgument) as error:
            # Flyte's executor, if there is one, ends it as FAILED.
            _log.warning("condition_unreadable", key=_text(key), reason=str(error))
            return None
        applied, _ = await self._store.compare_and_put(kv, value)
        if applied:
            _log.info(
                "action_ended",
                action=describe(action.action_id),
                phase=Phase.TIMED_OUT.name,
                error=TOO_LONG.code,
            )
            return None
        return self._clock.monotonic()

    def _ends(self, action: StoredAction, seen: _Seen) -> float | None:
        try:
            condition = conversions.condition_action(action)
        except ConfigError as error:
            _log.warning("condition_without_end", key=_text(action.key), error=str(error))
            return None
        timeout = None if condition is None else limit_of(condition.timeout, _FIELD)
        if timeout is None:
            return None
        created = action.metadata.creation_timestamp
        age = age_of(created, "metadata.creationTimestamp", seen.wall)
        return seen.monotonic - age + timeout

    def _ended(self, kv: KeyValue) -> bytes:
        codec = codec_of(kv.value)
        tree = codec.decode_tree(kv.value, key=kv.key, revision=kv.mod_revision)
        write_phase(tree, Phase.TIMED_OUT, now=self._now(), error=TOO_LONG)
        try:
            return codec.encode_tree(tree)
        except ValueError as error:
            raise InvalidArgument("status", f"the object cannot be stored: {error}") from None

    def _look(self, key: bytes, when: float) -> None:
        self._due.put(key, when)
        self._changed.set()


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")
