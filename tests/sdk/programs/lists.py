"""Asks for lists of runs and tasks as a user's program does, and prints what it got."""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import flyte
from flyte.remote import Run, Task
from flyte.remote._common import TimeFilter

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
env = flyte.TaskEnvironment(name="env", image="python:3.11")


@env.task
async def main(x: int = 1) -> int:
    return x


@env.task(entrypoint=True)
async def first(x: int) -> int:
    return x


def names(**asked: Any) -> list[str]:
    return [run.name for run in Run.listall(**asked)]


def second(number: int) -> datetime:
    return BEGIN + timedelta(seconds=number)


def deployed() -> dict[str, Any]:
    for version in ("v1", "v1", "v2"):
        flyte.deploy(env, copy_style="none", version=version)
    latest = Task.get("env.main", auto_version="latest").fetch()
    return {
        "all": sorted((task.name, task.version) for task in Task.listall()),
        "by name": [task.name for task in Task.listall(by_task_name="env.main")],
        "entrypoints": [task.name for task in Task.listall(entrypoint=True)],
        "latest": latest.version,
    }


if __name__ == "__main__":
    flyte.init(endpoint=sys.argv[1], insecure=True, project="p", domain="d")
    found = {
        "all": len(names(limit=1000)),
        "newest": names(limit=2, sort_by=("created_at", "desc")),
        "oldest": names(limit=2),
        "recovered": names(in_phase=("recovered",), limit=2),
        "two phases": names(in_phase=("failed", "succeeded"), limit=3),
        "task": names(task_name="env.t1", task_version="v0", limit=2),
        "label": names(with_labels={"team": "ml"}, limit=2),
        "key": names(with_label_keys=["team"], limit=2),
        "created": names(created_at=TimeFilter(after=second(10), before=second(12))),
        "updated": names(updated_at=TimeFilter(after=second(125))),
        "mine": names(created_by_subject="me"),
        "tasks": deployed(),
    }
    print(json.dumps(found), flush=True)
    # At Python's own exit, before 3.14, a thread of the SDK's HTTP client that calls back into
    # Python is ended by pthread_exit. That unwinds through code in Rust, which aborts: SIGABRT,
    # "FATAL: exception not rethrown". A third of the programs that exit during calls end so.
    os._exit(0)
