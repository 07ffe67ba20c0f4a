"""The load's keys and values: captured TaskActions under new names, with a stamp inside.

A value is built once and cut where its stamp goes, so sending one costs a concatenation.
The stamp is ``time.monotonic_ns()`` just before the put: on one machine all processes
read the same clock. It is the action's short name, which subscribers are sent, too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

STAMP_DIGITS = 19
STAMP_MARK = b'"shortName":"'

ACTIONS_PER_RUN = 20
PROJECT, DOMAIN, PARENT = "flytesnacks", "development", "a0"

_RUN, _ACTION, _UID, _STAMP = "@RUN@", "@ACTION@", "@UID@", "@STAMP@"


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


def run_name(number: int) -> str:
    """The name of one of the load's runs; runs are spread over the keys by chance."""
    digest = hashlib.sha256(str(number).encode()).digest()
    return "r" + base64.b32encode(digest)[:11].decode().lower()


def bodies(
    history: Path, prefix: str, keys: int, *, per_run: int = ACTIONS_PER_RUN, small: bool = False
) -> Iterator[list[Body]]:
    """For each of ``keys`` keys the states that it goes through, in order.

    Args:
        history: Captured etcd events, as JSON lines with ``key`` and ``value`` (base64).
        prefix: What all keys begin with.
        keys: How many keys; they are spread over runs.
        per_run: Actions of a run, all of them children of :data:`PARENT`.
        small: Leave the task's template out, which is most of a value.
    """
    lives = _lives(history, small)
    rng = random.Random(1)
    run = ""
    for index in range(keys):
        number = index % per_run
        if number == 0:
            run = run_name(index // per_run)
        action = f"a{number + 1}"
        uid = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        key = f"{prefix}{run}-{action}".encode()
        states = []
        for template in lives[index % len(lives)]:
            text = template.replace(_RUN, run).replace(_ACTION, action).replace(_UID, uid)
            before, after = text.encode().split(_STAMP.encode())
            states.append(Body(key, before, after))
        yield states


def _lives(history: Path, small: bool) -> list[list[str]]:
    """Templates of the captured states of about 3 KB, one list for each captured action.

    Roots are omitted, having no parent, and so are states that are being deleted.
    """
    lives: dict[str, list[str]] = {}
    with history.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            value = base64.b64decode(event["value"] or "")
            if not 2500 <= len(value) <= 4000:
                continue
            action = json.loads(value)
            if small:
                action["spec"].pop("taskTemplate", None)
            if action["spec"].get("parentActionName") == PARENT and not action["metadata"].get(
                "deletionTimestamp"
            ):
                lives.setdefault(event["key"], []).append(_template(action))
    if not lives:
        raise ValueError(f"no TaskAction of about 3 KB in {history}")
    return list(lives.values())


def _template(action: dict[str, Any]) -> str:
    metadata, spec = action["metadata"], action["spec"]
    run, name = spec["runName"], spec["actionName"]
    spec["shortName"] = _STAMP
    metadata["uid"] = _UID
    metadata["name"] = f"{_RUN}-{_ACTION}"
    metadata["labels"]["flyte.org/action"] = _ACTION
    spec["actionName"] = _ACTION
    text = json.dumps(action, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # As the API server writes it.
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.replace(f"/{name}/", f"/{_ACTION}/").replace(run, _RUN) + "\n"
