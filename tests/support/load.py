"""TaskActions made from captured ones, and writers that live through outages."""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import trio

from etcd_actions import ActionId
from etcd_actions.codecs import json
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Delete,
    Etcd,
    KeyRange,
    KeyValue,
    Put,
    Txn,
)
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    LABEL_ACTION,
    LABEL_RUN,
    LABEL_TERMINAL_STATUS_RECORDED,
    object_key,
)
from tests.data.captured import PUTS
from tests.support.recording import Bell

PROJECT, DOMAIN, NAMESPACE = "flytesnacks", "development", "flyte"
_RETRY_AFTER = 0.05


def _templates() -> list[list[bytes]]:
    """The states of each captured child of the first run, without the marks."""
    states: dict[bytes, list[bytes]] = {}
    for put in PUTS:
        marked = f'"{LABEL_TERMINAL_STATUS_RECORDED}":"true"'.encode() in put.value
        if b"rh7k2m9p4qv3-a" in put.key and not marked:
            states.setdefault(put.key, []).append(put.value)
    return [states[key] for key in sorted(states) if not key.endswith(b"-a0")]


_TEMPLATES = _templates()


class Action(NamedTuple):
    """One action to play: its key, and its states from creation to the end."""

    key: bytes
    run: str
    name: str
    states: Sequence[bytes]

    @property
    def id(self) -> ActionId:
        """Which action it is."""
        return ActionId(PROJECT, DOMAIN, self.run, self.name)

    @property
    def ended(self) -> bytes:
        """Its last state."""
        return self.states[-1]


def make_action(prefix: bytes, run: str, name: str, *, uid: str = "", like: int = 0) -> Action:
    """An action of ``run``, child of its root, that does what a captured one did."""
    key = object_key(prefix, NAMESPACE, f"{run}-{name}")
    states = []
    for template in _TEMPLATES[like % len(_TEMPLATES)]:
        tree = json.decode_tree(template)
        metadata, spec = tree["metadata"], tree["spec"]
        metadata["name"] = f"{run}-{name}"
        metadata["uid"] = uid or f"uid-{run}-{name}"
        metadata["labels"] |= {LABEL_RUN: run, LABEL_ACTION: name}
        spec |= {"runName": run, "actionName": name, "parentActionName": "a0"}
        states.append(json.encode_tree(tree))
    return Action(key, run, name, states)


def make_run(prefix: bytes, run: str, children: int) -> list[Action]:
    """The children of one run."""
    return [make_action(prefix, run, f"a{n}", like=n) for n in range(1, children + 1)]


def with_uid(value: bytes, uid: str) -> bytes:
    """The same object in another incarnation."""
    tree = json.decode_tree(value)
    tree["metadata"]["uid"] = uid
    return json.encode_tree(tree)


def with_annotation(value: bytes, name: str, text: str) -> bytes:
    """The same object with an annotation more."""
    tree = json.decode_tree(value)
    tree["metadata"].setdefault("annotations", {})[name] = text
    return json.encode_tree(tree)


class Load:
    """Writers over some runs: create, phases, end, deletes, re-creation.

    A lost answer is followed by a read, and every write compares the revision, so none is
    doubled. A mark that somebody set is kept.

    Attributes:
        writes: Number of transactions that were acknowledged, or found to have happened.
        outages: Number of tries that failed.
        done: Whether all runs were played to their end.
    """

    def __init__(self, etcd: Etcd, *, seed: int = 0) -> None:
        self._etcd = etcd
        self._random = random.Random(seed)
        self._bell = Bell()
        self.writes = 0
        self.outages = 0
        self.done = False
        self._strikes: list[int] = []

    async def reached(self, writes: int) -> None:
        """Wait until so many writes were made, or all."""
        await self._bell.until(lambda: self.done or self.writes >= writes)

    async def play(
        self,
        runs: Iterable[Sequence[Action]],
        *,
        rounds: int = 1,
        strikes: Iterable[int] = (),
        strike: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        """Play all runs side by side.

        Between rounds all actions of a run are deleted at once and made again. At the end
        every third run loses half of its actions, and another third has one made again.

        Each time so many writes were made, ``strike`` is called, in the middle of the load:
        rounds are added for as long as that takes.
        """
        self._strikes = sorted(strikes)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._strike, strike)
            for number, actions in enumerate(runs):
                nursery.start_soon(self._play_run, actions, rounds, number)
        self.done = True
        self._bell.ring()

    async def write(self, key: bytes, value: bytes) -> None:
        """Write one state, whatever the key holds, but keep its mark."""

        async def attempt() -> bool:
            found = await self._etcd.range(KeyRange.of_key(key))
            current = found.kvs[0] if found.kvs else None
            wanted = value
            if current is not None and _is_marked(current) and _uid(current.value) == _uid(value):
                mark = json.decode(current.value).metadata.annotations[ANNOTATION_RECORDED]
                wanted = json.release(
                    value,
                    LABEL_TERMINAL_STATUS_RECORDED,
                    "true",
                    None,
                    annotations={ANNOTATION_RECORDED: mark},
                ).value
            if current is not None and current.value == wanted:
                return True
            unchanged = _at(key, current.mod_revision if current else 0)
            return (await self._etcd.txn(Txn([unchanged], [Put(key, wanted)]))).succeeded

        await self._persist(attempt)

    async def create_all(self, values: Mapping[bytes, bytes]) -> None:
        """Create several keys in one transaction, unless the first one exists."""
        keys = list(values)
        puts = [Put(key, value) for key, value in values.items()]

        async def attempt() -> bool:
            await self._etcd.txn(Txn([_at(keys[0], 0)], puts))
            return True

        await self._persist(attempt)

    async def delete_all(self, keys: Iterable[bytes]) -> None:
        """Delete several keys in one transaction."""
        deletes = [Delete(KeyRange.of_key(key)) for key in keys]

        async def attempt() -> bool:
            await self._etcd.txn(Txn([], deletes))
            return True

        await self._persist(attempt)

    async def _strike(self, strike: Callable[[], Awaitable[None]]) -> None:
        while self._strikes:
            await self.reached(self._strikes[0])
            await strike()
            del self._strikes[0]

    async def _play_run(self, actions: Sequence[Action], rounds: int, number: int) -> None:
        for round_ in itertools.count(1):
            lives = [
                deque(with_uid(state, f"uid-{number}-{round_}-{n}") for state in action.states)
                for n, action in enumerate(actions)
            ]
            await self.create_all(
                {action.key: life.popleft() for action, life in zip(actions, lives, strict=True)}
            )
            turns = [n for n, life in enumerate(lives) for _ in life]
            self._random.shuffle(turns)
            for n in turns:
                await self.write(actions[n].key, lives[n].popleft())
            if round_ >= rounds and not self._strikes:
                break
            await self.delete_all(action.key for action in actions)
        if number % 3 == 1:
            await self.delete_all(action.key for action in actions[::2])
        elif number % 3 == 2:
            again = actions[0]
            await self.delete_all([again.key])
            await self.write(again.key, with_uid(again.ended, f"uid-{number}-again"))

    async def _persist(self, attempt: Callable[[], Awaitable[bool]]) -> None:
        while True:
            try:
                if await attempt():
                    break
            except Unavailable:
                self.outages += 1
                await trio.sleep(_RETRY_AFTER)
        self.writes += 1
        self._bell.ring()


def _at(key: bytes, revision: int) -> Compare:
    return Compare(key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, revision)


def _is_marked(kv: KeyValue) -> bool:
    return json.decode(kv.value).is_recorded


def _uid(value: bytes) -> str:
    return json.decode(value).metadata.uid


def root_of(run: str) -> ActionId:
    """The root of a run, which subscribers name to hear of its children."""
    return ActionId(PROJECT, DOMAIN, run, "a0")
