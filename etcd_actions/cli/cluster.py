"""The state of the cluster for ``top``: of etcd, or as the service reports it to the page."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from etcd_actions.cli.formats.changes import plural
from etcd_actions.cli.options import CommonOptions
from etcd_actions.codecs import codec_of
from etcd_actions.config.settings import SERVICE, SERVICE_CACERT, SERVICE_TOKEN_FILE
from etcd_actions.errors import DecodeError, EtcdError, ServiceRefused, ServiceUnavailable
from etcd_actions.etcd import EtcdClient
from etcd_actions.etcd.api import KeyRange
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.etcd.member_states import member_states
from etcd_actions.model import Keyspace, Phase

_NO_PAGE = "the service shows no state of the cluster: it runs with --page=false"
# The most actions whose phases are counted, and the most claims that are read.
_MOST_SCANNED = 20_000


@dataclass(frozen=True)
class ClusterSample:
    """The state of the cluster at one moment.

    Attributes:
        facts: Texts for people, by title.
        counters: Numbers that only grow, by name.
        at: The time of the sample, in seconds of the monotonic clock.
        note: Why a part is missing; empty if none is.
    """

    facts: dict[str, str]
    counters: Mapping[str, int] = field(default_factory=dict)
    at: float = field(default_factory=time.monotonic)
    note: str = ""

    def rates(self, before: ClusterSample) -> dict[str, float]:
        """The growth of each counter a second since an earlier sample."""
        seconds = max(self.at - before.at, 1e-3)
        return {
            name: max(0.0, (number - before.counters[name]) / seconds)
            for name, number in self.counters.items()
            if name in before.counters
        }


async def service_versions(common: CommonOptions) -> tuple[str, str]:
    """The version of the service that the settings name, and those of its etcd's members.

    Raises:
        ServiceError: It does not respond, or refuses the token.
    """
    state = await (await _service_source(common)).state()
    if state is None:
        raise ServiceUnavailable(_NO_PAGE)
    found = {each.get("version", "") for each in state.get("members") or []}
    return str(state.get("version", "")), ", ".join(sorted(filter(None, found)))


@asynccontextmanager
async def open_cluster(
    common: CommonOptions,
) -> AsyncIterator[Callable[[], Awaitable[ClusterSample]]]:
    """Open what takes samples: of the service if the settings name one, else of etcd.

    A sample raises EtcdError or ServiceError.
    """
    if common.config[SERVICE] is not None:
        yield (await _service_source(common)).sample
        return
    async with common.open_etcd() as etcd:
        yield _EtcdClusterSource(etcd, common).sample


async def _service_source(common: CommonOptions) -> _ServiceClusterSource:
    from etcd_actions.cli.service_address import address_of_service  # noqa: PLC0415 (as below)
    from etcd_actions.cli.service_client import read_token  # noqa: PLC0415 (slow to import)

    config = common.config
    token_file = config[SERVICE_TOKEN_FILE]
    token = "" if token_file is None else read_token(token_file)
    return _ServiceClusterSource(await address_of_service(config), config[SERVICE_CACERT], token)


class _Claim(msgspec.Struct, frozen=True):
    owner: str = ""


class _EtcdClusterSource:
    def __init__(self, etcd: EtcdClient, common: CommonOptions) -> None:
        self._etcd = etcd
        self._prefix = common.prefix
        self._keys = Keyspace(common.prefix)
        self._namespace = common.namespace

    async def sample(self) -> ClusterSample:
        found = await self._etcd.range(KeyRange.of_prefix(self._prefix), limit=1, keys_only=True)
        facts: dict[str, str] = {}
        members = []
        with suppress(EtcdError):
            members = await member_states(self._etcd.settings, await self._etcd.members())
        if members:
            up = sum(each.is_up for each in members)
            sizes = [each.status.db_size for each in members if each.status is not None]
            size = f", {max(sizes) / 2**20:.0f} MiB" if sizes else ""
            facts["etcd"] = f"{up} of {len(members)} members up, revision {found.revision}{size}"
        else:
            facts["etcd"] = f"revision {found.revision}"
        facts |= await self._shards() or await self._leader()
        facts |= await self._actions(found.total)
        facts["Executors"] = await self._executors()
        rejected = await self._etcd.range(
            KeyRange.of_prefix(self._keys.dead_letters), count_only=True
        )
        facts["Dead letters"] = str(rejected.total)
        return ClusterSample(facts, {"changes": found.revision})

    async def _shards(self) -> dict[str, str]:
        """The number of shards and of their owners; nothing without shards."""
        found = await self._etcd.range(KeyRange.of_prefix(self._keys.shards), keys_only=True)
        kinds = Counter(kv.key[len(self._keys.shards) :].split(b"/")[1] for kv in found.kvs)
        if not kinds[b"range"]:
            return {}
        owned, members = kinds[b"owner"], kinds[b"member"]
        return {"Shards": f"{kinds[b'range']}, {owned} with an owner, {members} members"}

    async def _leader(self) -> dict[str, str]:
        found = await self._etcd.range(KeyRange.of_prefix(self._keys.elections))
        if not found.kvs:
            return {"Leader": "none"}
        first = min(found.kvs, key=lambda kv: kv.create_revision)
        others = len(found.kvs) - 1
        candidates = f", {others} more" if others else ""
        return {"Leader": f"{first.value.decode(errors='replace')}{candidates}"}

    async def _actions(self, total: int) -> dict[str, str]:
        """The number of actions by phase; above some thousands only the total."""
        if total > _MOST_SCANNED:
            return {"Actions": f"{total} (too many to count by phase)"}
        phases: Counter[str] = Counter()
        unrecorded = 0
        prefix = self._prefix
        if self._namespace is not None:
            prefix += f"{self._namespace}/".encode()
        found = await self._etcd.range(KeyRange.of_prefix(prefix))
        for kv in found.kvs:
            try:
                action = codec_of(kv.value).summarize(kv.value)
            except DecodeError:
                phases["undecodable"] += 1
                continue
            phases[(action.phase or Phase.QUEUED).name] += 1
            unrecorded += action.is_terminal and not action.recorded
        counts = ", ".join(f"{number} {phase}" for phase, number in phases.most_common())
        return {
            "Actions": f"{len(found.kvs)}: {counts}" if counts else "0",
            "To report": str(unrecorded),
        }

    async def _executors(self) -> str:
        found = await self._etcd.range(KeyRange.of_prefix(self._keys.claims), limit=_MOST_SCANNED)
        owners: Counter[str] = Counter()
        for kv in found.kvs:
            with suppress(msgspec.DecodeError):
                owners[msgspec.json.decode(kv.value, type=_Claim).owner] += 1
        if not owners:
            return "no action is claimed"
        return ", ".join(f"{owner} ({number})" for owner, number in owners.most_common())


class _ServiceClusterSource:
    def __init__(self, service: Endpoint, ca: Any, token: str) -> None:
        self._service = service
        self._ca = ca
        self._token = token

    async def sample(self) -> ClusterSample:
        state = await self.state()
        if state is None:
            return ClusterSample({}, note=_NO_PAGE)
        return ClusterSample(_facts(state), _counters(state))

    async def state(self) -> dict[str, Any] | None:
        """The state that the page shows; None if the service has no page."""
        from etcd_actions.cli.plain_http import first_line  # noqa: PLC0415 (slow to import)

        status, line = await first_line(self._service, self._ca, "/page/cluster", self._token)
        if status == 404:
            return None
        if status in (401, 403):
            raise ServiceRefused(
                f"the service: it does not accept the token ({status}): check "
                f"{SERVICE_TOKEN_FILE.flag}"
            )
        try:
            state: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError):
            raise ServiceUnavailable(f"the service: no state of the cluster ({status})") from None
        return state


def _facts(state: dict[str, Any]) -> dict[str, str]:
    members = state.get("members") or []
    facts: dict[str, str] = {}
    if members:
        up = sum(bool(each.get("up")) for each in members)
        revision = max((each.get("revision", 0) for each in members), default=0)
        size = max((each.get("size", 0) for each in members), default=0)
        facts["etcd"] = (
            f"{up} of {len(members)} members up, revision {revision}, {size / 2**20:.0f} MiB"
        )
    watch, queues = state.get("watch") or {}, state.get("queues") or {}
    if watch:
        behind, seconds = watch.get("lagRevisions", 0), watch.get("lagSeconds", 0)
        facts["Lag"] = f"{plural(behind, 'revision')}, for {seconds:.1f} s" if behind else "none"
    if shards := state.get("shards"):
        owned = sum(bool(each.get("owner")) for each in shards)
        sharing = state.get("shardMembers", 0)
        facts["Shards"] = f"{len(shards)}, {owned} with an owner, {sharing} members"
    else:
        facts["Leader"] = "this process" if state.get("leader") else "another process, or none"
    reports, handlers = queues.get("reports") or {}, queues.get("handlers") or {}
    facts["Queues"] = f"{handlers.get('keys', 0)} to handle, {reports.get('keys', 0)} to report"
    executor = state.get("executor")
    if executor:
        facts["Executor"] = ", ".join(f"{number} {name}" for name, number in executor.items())
    facts["Dead letters"] = str((state.get("deadLetters") or {}).get("count", 0))
    failing = [
        f"{each.get('name')}: {each.get('reason')}"
        for each in state.get("checks") or []
        if each.get("reason")
    ]
    if failing:
        facts["Unhealthy"] = "; ".join(failing)
    return facts


def _counters(state: dict[str, Any]) -> dict[str, int]:
    counts = state.get("counts") or {}
    return {name: int(number) for name, number in counts.items() if isinstance(number, int)}
