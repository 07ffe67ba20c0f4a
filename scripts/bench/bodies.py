"""The load's keys and values: captured TaskActions under new names, with a stamp inside.

A value is built once and cut where its stamp goes, so sending one costs a concatenation.
The stamp is ``time.monotonic_ns()`` just before the put: on one machine all processes
read the same clock.
"""

from __future__ import annotations

import base64
import json
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

STAMP_DIGITS = 19
STAMP_ANNOTATION = "bench/sent"
STAMP_MARK = f'"{STAMP_ANNOTATION}":"'.encode()

ACTIONS_PER_RUN = 20

_RUN, _ACTION, _UID, _STAMP = "@RUN@", "@ACTION@", "@UID@", "@STAMP@"
_BASE32 = "abcdefghijklmnopqrstuvwxyz234567"


class Body(NamedTuple):
    """One value of one key, cut around its stamp."""

    key: bytes
    before: bytes
    after: bytes

    def __len__(self) -> int:
        """The length of the value."""
        return len(self.before) + STAMP_DIGITS + len(self.after)


def stamp(now: int) -> bytes:
    """``now`` in the fixed width of a stamp."""
    return b"%0*d" % (STAMP_DIGITS, now)


def stamp_of(value: bytes) -> int:
    """The stamp inside a value."""
    start = value.index(STAMP_MARK) + len(STAMP_MARK)
    return int(value[start : start + STAMP_DIGITS])


def bodies(history: Path, prefix: str, keys: int, seed: int) -> Iterator[list[Body]]:
    """For each of ``keys`` keys the states that it goes through, in order.

    Args:
        history: Captured etcd events, as JSON lines with ``key`` and ``value`` (base64).
        prefix: What all keys begin with.
        keys: How many keys; they are spread over runs of :data:`ACTIONS_PER_RUN` actions.
        seed: The same seed gives the same names.
    """
    lives = _lives(history)
    rng = random.Random(seed)
    run = ""
    for index in range(keys):
        number = index % ACTIONS_PER_RUN
        if number == 0:
            run = "r" + "".join(rng.choices(_BASE32, k=11))
        action = f"a{number + 1}"
        uid = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        key = f"{prefix}{run}-{action}".encode()
        states = []
        for template in lives[index % len(lives)]:
            text = template.replace(_RUN, run).replace(_ACTION, action).replace(_UID, uid)
            before, after = text.encode().split(_STAMP.encode())
            states.append(Body(key, before, after))
        yield states


def _lives(history: Path) -> list[list[str]]:
    """Templates of the captured states of about 3 KB, one list for each captured action.

    Roots are left out, having no parent, and so are states that are being deleted.
    """
    lives: dict[str, list[str]] = {}
    with history.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            value = base64.b64decode(event["value"] or "")
            if not 2500 <= len(value) <= 4000:
                continue
            action = json.loads(value)
            if action["spec"].get("parentActionName") and not action["metadata"].get(
                "deletionTimestamp"
            ):
                lives.setdefault(event["key"], []).append(_template(action))
    if not lives:
        raise ValueError(f"no TaskAction of about 3 KB in {history}")
    return list(lives.values())


def _template(action: dict[str, Any]) -> str:
    metadata, spec = action["metadata"], action["spec"]
    run, name = spec["runName"], spec["actionName"]
    metadata.setdefault("annotations", {})[STAMP_ANNOTATION] = _STAMP
    metadata["uid"] = _UID
    metadata["name"] = f"{_RUN}-{_ACTION}"
    metadata["labels"]["flyte.org/action"] = _ACTION
    spec["actionName"] = _ACTION
    text = json.dumps(action, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # As the API server writes it.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.replace(f"/{name}/", f"/{_ACTION}/").replace(run, _RUN) + "\n"
