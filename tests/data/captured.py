"""The captured history, read once."""

import base64
import json
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent


class Event(NamedTuple):
    type: str
    key: bytes
    value: bytes
    previous: bytes
    mod_revision: int
    create_revision: int
    version: int
    rest: dict[str, Any]
    """The API server's own watch event for this change."""

    @property
    def id(self) -> str:
        return f"{self.key.rpartition(b'/')[2].decode()}@{self.mod_revision}"


def _lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text().splitlines()]


def _events() -> list[Event]:
    history = _lines("taskaction_history.jsonl")
    previous = _lines("taskaction_history_prevkv.jsonl")
    rest = _lines("taskaction_watch_rest.jsonl")
    return [
        Event(
            type=event["type"],
            key=event["key"].encode(),
            value=base64.b64decode(event.get("value") or ""),
            previous=base64.b64decode(before.get("prev_value") or ""),
            mod_revision=event["mod_revision"],
            create_revision=event["create_revision"],
            version=event["version"],
            rest=seen,
        )
        for event, before, seen in zip(history, previous, rest, strict=True)
    ]


EVENTS = _events()
PUTS = [event for event in EVENTS if event.type == "PUT"]
DELETES = [event for event in EVENTS if event.type == "DELETE"]
