"""Health and metrics of a client on a real etcd, over HTTP."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from etcd_actions import (
    ActionId,
    ActionsClient,
    ActionStatus,
    Phase,
    WatchingSettings,
    open_actions_client,
    open_etcd,
)
from etcd_actions._internal.histogram import Distribution
from etcd_actions.codecs import json as json_codec
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.executor import ExecutorStatistics
from etcd_actions.model.names import ANNOTATION_RUN_QUEUE
from etcd_actions.monitoring import Monitoring, open_monitoring
from etcd_actions.run_service import RunService
from etcd_actions.runs.removal import Removed
from etcd_actions.server import ServerStatistics
from etcd_actions.testing import OwnEtcd
from etcd_actions.uploads import SweepResult
from etcd_actions.web import Bind
from tests.support import flyte
from tests.support.waiting import eventually, eventually_holds

ROOT = ActionId("p", "d", "r1", "a0", "o")
LOOPBACK = Bind("127.0.0.1", 0)

DEGRADING = ("values", "recording")
"""The checks without which a process is ready nevertheless."""


async def get(
    monitoring: Monitoring, path: str, method: str = "GET", accept: str = "*/*"
) -> tuple[int, str]:
    def ask() -> tuple[int, str]:
        connection = http.client.HTTPConnection(str(monitoring.address), timeout=20)
        connection.request(method, path, headers={"Accept": accept})
        response = connection.getresponse()
        body = response.read().decode()
        connection.close()
        return response.status, body

    return await trio.to_thread.run_sync(ask)


async def ready(monitoring: Monitoring) -> tuple[int, dict[str, str]]:
    status, body = await get(monitoring, "/readyz", accept="application/json")
    told = json.loads(body)
    assert told["ready"] == (status == 200)
    assert (told["status"] == "not ready") == (status != 200)
    checks: dict[str, str] = told["checks"]
    return status, checks


async def samples(monitoring: Monitoring) -> dict[tuple[str, ...], float]:
    """The values, by name and labels."""
    status, body = await get(monitoring, "/metrics")
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


@pytest.fixture
async def monitoring(client: ActionsClient, etcd: Etcd, prefix: bytes) -> AsyncIterator[Monitoring]:
    async with open_monitoring(
        client, etcd, LOOPBACK, prefix=prefix, silence_limit=30
    ) as monitoring:
        yield monitoring


async def test_it_is_ready_once_all_is_listed(
    client: ActionsClient, monitoring: Monitoring
) -> None:
    assert await get(monitoring, "/healthz") == (200, "ok\n")
    status, checks = await ready(monitoring)
    assert (status, checks["listed"]) == (503, "the first list is not finished")
    assert checks["stream"] == "nothing is watched"
    assert not monitoring.health.is_serving
    await client.start_watching()
    assert await ready(monitoring) == (
        200,
        dict.fromkeys(
            (*("draining", "listed", "stream", "handlers", "contained"), "etcd", *DEGRADING), "ok"
        ),
    )
    assert monitoring.health.is_serving
    monitoring.health.draining = True
    status, checks = await ready(monitoring)
    assert (status, checks["draining"]) == (503, "it is about to end")


async def test_in_words(client: ActionsClient, monitoring: Monitoring) -> None:
    """As text it names what fails; verbose, or as JSON, all."""
    assert await get(monitoring, "/readyz") == (
        503,
        "not ready\n[-] listed: the first list is not finished\n[-] stream: nothing is watched\n",
    )
    await client.start_watching()
    assert await get(monitoring, "/readyz") == (200, "ready\n")
    names = ("draining", "listed", "stream", "handlers", "contained", "etcd", *DEGRADING)
    lines = "".join(f"[+] {name}: ok\n" for name in names)
    for query in ("verbose", "verbose=1", "a=b&verbose"):
        assert await get(monitoring, f"/readyz?{query}") == (200, f"ready\n{lines}")


async def test_a_lost_stream_and_a_lost_quorum_are_named(
    client: ActionsClient, monitoring: Monitoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.start_watching()
    statistics = client.statistics()
    assert statistics.reflector is not None
    for failures, is_ready in ((2, True), (3, False), (8, False)):
        lost = replace(
            statistics.reflector, streaming=False, failures=failures, failure="no leader"
        )
        found = replace(statistics, reflector=lost)
        monkeypatch.setattr(client, "statistics", lambda found=found: found)
        words = f"no stream is open: {failures} attempts failed, the last with: no leader"
        status, checks = await ready(monitoring)
        assert (status, checks["stream"]) == ((200, "ok") if is_ready else (503, words))
    words = "quorum lost: 1 of 3 members up (10.0.0.5:2379)"
    monitoring.health.quorum_loss = lambda: words
    assert (await ready(monitoring))[1]["stream"] == words


async def test_before_etcd_is_heard_it_says_so(
    client: ActionsClient, monitoring: Monitoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.start_watching()
    statistics = client.statistics()
    assert statistics.reflector is not None
    silent = replace(statistics, reflector=replace(statistics.reflector, silence=math.inf))
    monkeypatch.setattr(client, "statistics", lambda: silent)
    status, checks = await ready(monitoring)
    assert (status, checks["stream"]) == (503, "etcd has sent nothing yet")


async def test_other_requests_are_refused(monitoring: Monitoring) -> None:
    assert (await get(monitoring, "/"))[0] == 404
    assert (await get(monitoring, "/metrics", "POST"))[0] == 405
    assert await get(monitoring, "/healthz", "HEAD") == (200, "")


@pytest.mark.faults
async def test_metrics_tell_that_etcd_does_not_answer_before_the_stream_is_silent(
    own_etcd: OwnEtcd, prefix: bytes
) -> None:
    """Nobody has to ask for /readyz."""
    async with (
        open_etcd(own_etcd.endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix) as client,
        open_monitoring(client, etcd, LOOPBACK, prefix=prefix, silence_limit=600) as monitoring,
    ):
        await client.start_watching()
        assert (await samples(monitoring))["etcd_actions_ready",] == 1
        own_etcd.suspend()
        with trio.fail_after(60):
            while (await samples(monitoring))["etcd_actions_ready",] == 1:
                await trio.lowlevel.checkpoint()
        assert monitoring.health.is_serving
        own_etcd.resume()
        with trio.fail_after(60):
            while (await samples(monitoring))["etcd_actions_ready",] == 0:
                await trio.lowlevel.checkpoint()


@pytest.mark.faults
async def test_an_etcd_that_is_away_is_told(own_etcd: OwnEtcd, prefix: bytes) -> None:
    async with (
        open_etcd(own_etcd.endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix) as client,
        open_monitoring(client, etcd, LOOPBACK, prefix=prefix, silence_limit=0.5) as monitoring,
    ):
        await client.start_watching()
        assert (await ready(monitoring))[0] == 200
        own_etcd.suspend()
        told: dict[str, str] = {}
        with trio.fail_after(60):
            while told.get("etcd", "ok") == "ok" or told["stream"] == "ok":
                _, told = await ready(monitoring)
        assert (await samples(monitoring))["etcd_actions_ready",] == 0
        own_etcd.resume()
        with trio.fail_after(60):
            while (await ready(monitoring))[0] != 200:
                await trio.lowlevel.checkpoint()


async def test_a_handler_that_keeps_failing_degrades_it(
    client: ActionsClient, etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(RunService):
        def accepts(self, phase: Phase, deleted: bool) -> bool:
            return True

        async def record_action(self, *_: object) -> None:
            raise RuntimeError("it refuses")

        async def update_action_status(self, *_: object) -> None:
            raise RuntimeError("it refuses")

    settings = WatchingSettings(elect=False, grace=0)
    async with (
        open_actions_client(
            etcd, prefix=prefix, run_service=Refusing(), settings=settings
        ) as failing,
        open_monitoring(failing, etcd, LOOPBACK, prefix=prefix, silence_limit=30) as monitoring,
    ):
        await failing.start_watching()
        monkeypatch.setattr(monitoring.health, "_failing_for", 0.0)
        await failing.enqueue(flyte.task(ROOT))

        def fails() -> bool:
            outbox = failing.statistics().outbox
            return outbox is not None and bool(outbox.failing)

        await eventually(fails)
        status, checks = await ready(monitoring)
        assert status == 503
        assert "r1-a0" in checks["handlers"]
        assert "it refuses" in checks["handlers"]
        found = await samples(monitoring)
        assert found["etcd_actions_ready",] == 0
        assert found["etcd_actions_run_service_calls_total", "record", "failed"] >= 1
        assert found["etcd_actions_queue_failing_keys", "outbox"] == 1
        assert found["etcd_actions_queue_retries_total", "outbox"] >= 1


async def test_values_that_cannot_be_read_degrade_it_in_words(
    client: ActionsClient, monitoring: Monitoring, etcd: Etcd, prefix: bytes
) -> None:
    """It stays fit: they hurt only themselves, and another process reads them no better."""

    async def told() -> dict[str, Any]:
        status, body = await get(monitoring, "/readyz", accept="application/json")
        assert status == 200
        answer: dict[str, Any] = json.loads(body)
        return answer

    def unreadable(count: int) -> Callable[[], bool]:
        return lambda: len(client.statistics().undecodable) == count

    await client.start_watching()
    assert (await told())["status"] == "ready"
    keys = [prefix + b"flyte/r-%d" % number for number in range(3)]
    for number, key in enumerate(keys):
        await etcd.put(key, b"k8s:enc:aescbc:v1:key1:\x8b")
        await eventually(unreadable(number + 1))
    answer = await told()
    assert (answer["ready"], answer["status"]) == (True, "degraded")
    values = answer["checks"]["values"]
    assert values.startswith("3 keys cannot be read, the first since 20")
    assert f"{prefix.decode()}flyte/r-0: the value is not JSON but encrypted at rest" in values
    assert values.endswith("see etcd-actions doctor")
    assert monitoring.health.is_serving
    assert (await samples(monitoring))["etcd_actions_ready",] == 1
    for key in keys:
        await etcd.delete(KeyRange.of_key(key))
    await eventually(unreadable(0))
    assert (await told())["status"] == "ready"


async def test_metrics_follow_what_happens(client: ActionsClient, monitoring: Monitoring) -> None:
    await client.start_watching()
    await client.enqueue(flyte.task(ROOT))
    await client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED))
    await eventually(lambda: client.statistics().marks.get("marked") == 1)
    await get(monitoring, "/readyz")
    async with client.subscribe(ROOT, snapshot=True):
        found = await samples(monitoring)
    assert found["etcd_actions_watch_synced",] == found["etcd_actions_watch_streaming",] == 1
    assert found["etcd_actions_watch_events_total",] >= 2
    assert found["etcd_actions_watch_keys",] == 1
    assert found["etcd_actions_marks_total", "marked"] == 1
    assert found["etcd_actions_leader",] == 1
    assert found["etcd_actions_trio_tasks",] > 10
    assert found["etcd_actions_subscriptions",] == 1
    assert found["etcd_actions_subscriber_lag_updates",] == 2
    assert found["etcd_actions_group_commit_members_total",] >= 2
    groups = found["etcd_actions_group_commit_groups_total",]
    assert found["etcd_actions_group_commit_size_bucket", "128.0"] == groups
    assert found["etcd_actions_group_commit_size_bucket", "+Inf"] == groups
    assert found["etcd_actions_group_commit_size_count",] == groups
    assert (
        found["etcd_actions_group_commit_size_sum",]
        == found["etcd_actions_group_commit_members_total",]
    )
    assert found["etcd_actions_queue_adds_total", "handlers"] >= 2
    assert found["etcd_actions_handler_seconds_sum", "handlers"] > 0
    assert found["etcd_actions_queue_wait_seconds_sum", "handlers"] == 0
    assert found["etcd_actions_decode_errors_total",] == 0
    assert found["etcd_actions_group_commit_seconds_count",] == groups
    for queue in ("handlers", "outbox"):
        turns = found["etcd_actions_handler_seconds_count", queue]
        assert found["etcd_actions_handler_seconds_bucket", "30.0", queue] == turns > 0
    assert found["etcd_actions_queue_wait_seconds_count", "outbox"] >= 1
    # What is delivered after its mark, or before the last state of its key, is not reported.
    assert found["etcd_actions_report_lag_seconds_count",] >= 1
    assert 0 < found["etcd_actions_report_lag_seconds_sum",] < 60
    assert found["process_resident_memory_bytes",] > 1 << 20
    assert found["process_open_fds",] > 3
    assert any(name[0] == "python_info" for name in found)
    ours = ("etcd_actions_", "process_", "python_")
    assert [name[0] for name in found if not name[0].startswith(ours)] == []
    for call in ("record", "status"):
        accepted = found["etcd_actions_run_service_calls_total", call, "no_run_service"]
        assert found["etcd_actions_run_service_call_seconds_count", call] == accepted > 0


async def test_the_leader_counts_the_queued_actions_by_pool(
    client: ActionsClient, monitoring: Monitoring, etcd: Etcd, prefix: bytes
) -> None:
    """A pool has any name that a client gave it; an action that is started waits no more."""
    await client.start_watching()
    pools = {"r1": "", "r2": "gpu", "r3": "gpu", "r4": "x" * 500}
    for run, pool in pools.items():
        action_id = ActionId("p", "d", run, "a0")
        await client.enqueue(flyte.task(action_id))
        key = (await client.get_task_action(action_id)).key
        (kv,) = (await etcd.range(KeyRange.of_key(key))).kvs
        tree = json_codec.decode_tree(kv.value)
        if pool:
            tree["metadata"].setdefault("annotations", {})[ANNOTATION_RUN_QUEUE] = pool
        await etcd.put(key, json_codec.encode_tree(tree))

    async def counted() -> dict[str, float]:
        found = await samples(monitoring)
        return {
            names[0]: value
            for (name, *names), value in found.items()
            if name == "etcd_actions_queued_actions"
        }

    await eventually(lambda: client.statistics().elected)
    await eventually_holds(
        lambda: _equal(counted, {"default": 1.0, "gpu": 2.0, "x" * 100: 1.0}),
    )
    await client.put_status(ActionId("p", "d", "r2", "a0"), 1, ActionStatus(Phase.RUNNING))
    for run in ("r1", "r4"):
        await client.abort_action(ActionId("p", "d", run, "a0"))
    await eventually_holds(lambda: _equal(counted, {"default": 0.0, "gpu": 1.0}))
    await client.stop_watching()
    assert await counted() == {"default": 0.0}


async def _equal(
    look: Callable[[], Awaitable[dict[str, float]]], expected: dict[str, float]
) -> bool:
    return await look() == expected


async def test_without_a_run_service_no_call_is_accepted(etcd: Etcd, prefix: bytes) -> None:
    async with (
        open_actions_client(etcd, prefix=prefix) as client,
        open_monitoring(client, etcd, LOOPBACK, prefix=prefix, silence_limit=30) as monitoring,
    ):
        await client.start_watching()
        await client.enqueue(flyte.task(ROOT))
        await client.put_status(ROOT, 1, ActionStatus(Phase.SUCCEEDED))
        await eventually(lambda: client.statistics().marks.get("marked") == 1)
        found = await samples(monitoring)
    results = {name[2] for name in found if name[0] == "etcd_actions_run_service_calls_total"}
    assert results == {"no_run_service"}
    assert found["etcd_actions_report_lag_seconds_count",] == 1


async def test_server_and_executor_are_measured_where_they_are(
    client: ActionsClient, monitoring: Monitoring
) -> None:
    await client.start_watching()
    assert not [name for name in await samples(monitoring) if "executor" in name[0]]
    monitoring.metrics.server = lambda: ServerStatistics(
        calls={("Enqueue", "ok"): 3},
        times={"Enqueue": Distribution((0, 0, 2, 1, *(0,) * 14), 0.5)},
        open_streams=2,
        updates=5,
        conflated=1,
    )
    monitoring.metrics.executor = lambda: ExecutorStatistics(
        running=3,
        waiting=1,
        open_actions=4,
        started=7,
        adopted=1,
        ended={"FAILED": 2},
        retries=1,
        attempt_times={"FAILED": Distribution((0,) * 8 + (2,) + (0,) * 6, 100.0)},
        cache={"CACHE_HIT": 1},
    )
    monitoring.metrics.collected = lambda: Removed(records=2, objects=9, bytes=1000)
    monitoring.metrics.swept = lambda: SweepResult(
        uploads=4, bytes=500, images=3, moved=5, restored=1
    )
    found = await samples(monitoring)
    assert found["etcd_actions_swept_total", "upload"] == 4
    assert found["etcd_actions_swept_total", "restored"] == 1
    assert found["etcd_actions_swept_bytes_total",] == 500
    assert found["etcd_actions_collected_total", "run"] == 2
    assert found["etcd_actions_collected_total", "object"] == 9
    assert found["etcd_actions_collected_bytes_total",] == 1000
    assert found["etcd_actions_requests_total", "ok", "Enqueue"] == 3
    assert found["etcd_actions_request_seconds_sum", "Enqueue"] == 0.5
    assert found["etcd_actions_request_seconds_bucket", "0.00025", "Enqueue"] == 0
    assert found["etcd_actions_request_seconds_bucket", "0.0005", "Enqueue"] == 2
    assert found["etcd_actions_request_seconds_bucket", "+Inf", "Enqueue"] == 3
    assert found["etcd_actions_request_seconds_sum", "Enqueue"] == 0.5
    assert found["etcd_actions_open_streams",] == 2
    assert found["etcd_actions_executor_running",] == 3
    assert found["etcd_actions_executor_ended_total", "FAILED"] == 2
    assert found["etcd_actions_executor_cache_total", "CACHE_HIT"] == 1
    assert found["etcd_actions_executor_attempt_seconds_bucket", "30.0", "FAILED"] == 0
    assert found["etcd_actions_executor_attempt_seconds_bucket", "60.0", "FAILED"] == 2
    assert found["etcd_actions_executor_attempt_seconds_sum", "FAILED"] == 100
