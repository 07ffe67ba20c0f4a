"""Commands inside the test's own process, on its connection."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from etcd_actions.cli.options import CommonOptions
from etcd_actions.etcd.api import Etcd, KeyRange, RangeResult


class _Settings:
    """Without a service, and without a template of namespaces."""

    namespace_template = None

    def __getitem__(self, setting: object) -> None:
        return None


class Here:
    """The settings of a command, as far as it looks at them."""

    def __init__(self, etcd: Etcd, prefix: bytes, namespace: str | None = None) -> None:
        self.prefix = prefix
        self.namespace = namespace
        self.config = _Settings()
        self.qualify_runs = False
        self._etcd = etcd

    @asynccontextmanager
    async def open_etcd(self) -> AsyncIterator[Etcd]:
        yield self._etcd


def here(etcd: Etcd, prefix: bytes, namespace: str | None = None) -> CommonOptions:
    return cast(CommonOptions, Here(etcd, prefix, namespace))


class Reads:
    """An etcd that notes what is read, and may be changed between the reads."""

    def __init__(self, etcd: Etcd) -> None:
        self.etcd = etcd
        self.ranges: list[KeyRange] = []
        self.keys_read = 0

    async def range(self, keys: KeyRange, **options: Any) -> RangeResult:
        self.ranges.append(keys)
        found = await self.etcd.range(keys, **options)
        self.keys_read += len(found.kvs)
        return found


def reads(etcd: Etcd) -> tuple[Reads, Etcd]:
    noted = Reads(etcd)
    return noted, cast(Etcd, noted)


def taskaction(
    run: str,
    action: str,
    parent: str | None = "a0",
    *,
    project: str = "p",
    domain: str = "d",
    phase: str = "Executing",
    recorded: bool = False,
    namespace: str = "flyte",
    status: dict[str, Any] | None = None,
) -> bytes:
    """A small object as it is stored, with more in its status."""
    over = phase in ("Succeeded", "Failed")
    condition = {
        "type": phase if over else "Progressing",
        "status": "True",
        "reason": "Done" if over else phase,
        "message": "so it is",
        "lastTransitionTime": "2026-01-01T00:01:30Z",
    }
    stored = {
        "apiVersion": "flyte.org/v1",
        "kind": "TaskAction",
        "metadata": {
            "name": f"{run}-{action}",
            "namespace": namespace,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"flyte.org/terminal-status-recorded": "true"} if recorded else {},
        },
        "spec": {
            "project": project,
            "domain": domain,
            "runName": run,
            "actionName": action,
            "shortName": f"do_{action}",
            "runOutputBase": f"s3://data/{project}/{domain}/{run}",
            **({} if parent is None else {"parentActionName": parent}),
        },
        "status": {"attempts": 1, "conditions": [condition], **(status or {})},
    }
    return json.dumps(stored, separators=(",", ":"), sort_keys=True).encode() + b"\n"
