"""The dashboard and the alerts against the metrics of a process, and against Grafana's schema."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from etcd_actions import ActionId, ActionStatus, Phase, WatchingSettings, open_actions_client
from etcd_actions._internal.histogram import Distribution
from etcd_actions.etcd.api import Etcd, Member
from etcd_actions.etcd.member_states import MemberState
from etcd_actions.executor import ExecutorStatistics
from etcd_actions.monitoring.health import Health
from etcd_actions.monitoring.metrics import Metrics
from etcd_actions.server import ServerStatistics
from etcd_actions.web import ListenerStatistics
from tests.cli.command import ROOT
from tests.support import flyte
from tests.support.waiting import eventually

DEPLOY = ROOT / "docs" / "deploy"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
# What Prometheus adds, when it scrapes.
OF_TARGETS = {"job", "instance", "namespace", "le"}
FUNCTIONS = {
    *("absent", "by", "histogram_quantile", "increase", "max", "offset", "on", "or", "rate"),
    *("sum", "unless", "up", "vector"),
}
SDK_ROOT = ActionId("p", "d", "r1", "a0", "o")


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression of the alerts and the dashboard, and where it stands."""
    (group,) = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]:
        yield rule["alert"], rule["expr"]
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"]


async def members() -> list[MemberState]:
    return [MemberState(Member(1, "m1", (), is_learner=False), is_up=True, status=None)]


@pytest.fixture
async def exposed(etcd: Etcd, prefix: bytes) -> dict[str, set[str]]:
    """The metrics of a process in which everything happened, each with its labels."""
    # With shards it has all metrics of a leader, and those of shards.
    settings = WatchingSettings(shards=2)
    async with open_actions_client(etcd, prefix=prefix, settings=settings) as client:
        await client.start_watching()
        await client.enqueue(flyte.task(SDK_ROOT))
        await client.put_status(SDK_ROOT, 1, ActionStatus(Phase.SUCCEEDED))
        await eventually(lambda: client.statistics().marks.get("marked") == 1)
        metrics = Metrics(client, Health(client, etcd, prefix, silence_limit=30))
        metrics.server = lambda: ServerStatistics(
            calls={("Enqueue", "ok"): 1},
            times={"Enqueue": Distribution((0, 0, 2, 1, *(0,) * 14), 0.5)},
            open_streams=0,
            updates=0,
            conflated=0,
        )
        metrics.executor = lambda: ExecutorStatistics(
            running=0,
            waiting=0,
            open_actions=0,
            started=0,
            adopted=0,
            ended={"FAILED": 1},
            retries=0,
            attempt_times={"SUCCEEDED": Distribution((0,) * 15, 0.0)},
            cache={"CACHE_HIT": 1},
        )
        metrics.listeners["service"] = ListenerStatistics
        metrics.lines_dropped = lambda: 0
        metrics.members = members
        with client.containment.unit("action", "flyte/r1-a0", parks=True):
            raise RuntimeError("a unit that is parked")
        await metrics.text()
        families = list(metrics.collect())
    found = {each.name: set(each.labels) for family in families for each in family.samples}
    labels = {
        "etcd_actions_watch_reconnects_total": {"cause"},
        "etcd_actions_watch_relists_total": {"reason"},
        "etcd_actions_run_service_calls_total": {"call", "result"},
        "etcd_actions_http_connections_refused_total": {"listener", "reason"},
        "etcd_actions_http_connections_closed_total": {"listener", "reason"},
    }
    for family in families:
        # Counters that nothing has counted yet have no sample.
        name = f"{family.name}_total"
        if not family.samples and name in labels:
            found[name] = labels[name]
    return found


async def test_every_metric_and_label_is_there(exposed: dict[str, set[str]]) -> None:
    used = set()
    for where, expression in expressions():
        bare = re.sub(r'"[^"]*"', "", expression)
        names = set(re.findall(r"\b[a-z]+_[a-z_]+[a-z]\b(?!\s*[=!(])", bare))
        metrics = {name for name in names if name.startswith(("etcd_", "process_", "python_"))}
        assert metrics or "up{" in bare, where
        assert metrics <= set(exposed), where
        used |= metrics
        labels = set().union(*(exposed[metric] for metric in metrics)) | OF_TARGETS
        for by in re.findall(r"by \(([^)]*)\)", bare):
            assert {name.strip() for name in by.split(",")} <= labels, where
        for matchers in re.findall(r"\{([^}]*)\}", bare):
            assert set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers)) <= labels, where
    assert len(used) > 40


def test_every_query_selects_by_the_variables() -> None:
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "job", "namespace", "instance"}
    chosen = 'job=~"$job",namespace=~"$namespace",instance=~"$instance"'
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        for target in panel["targets"]:
            selectors = re.findall(r"\{([^}]*)\}", target["expr"])
            assert selectors, panel["title"]
            assert all(each.startswith(chosen) for each in selectors), panel["title"]


def test_every_panel_has_a_unit_and_states_have_colours() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        if panel["type"] == "stat":
            assert defaults["thresholds"]["steps"], panel["title"]
    by_title = {panel["title"]: panel["fieldConfig"]["defaults"] for panel in panels()}
    for title in ("Ready", "Leader", "Quorum of etcd"):
        (mapping,) = by_title[title]["mappings"]
        assert set(mapping["options"]) == {"0", "1"}


def test_no_panel_covers_another() -> None:
    used: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not used & cells, panel["title"]
        used |= cells


def test_it_is_what_grafanas_own_types_read() -> None:
    """They drop what they do not know: nothing may be lost."""
    reason = "scripts/_venv installs Grafana's types"
    model = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason=reason)
    encoder = pytest.importorskip("grafana_foundation_sdk.cog.encoder", reason=reason)
    read = model.Dashboard.from_json(DASHBOARD)
    written = json.loads(encoder.JSONEncoder(sort_keys=True).encode(read))
    assert list(lost(DASHBOARD, written)) == []


def lost(ours: object, theirs: object, path: str = "") -> Iterator[str]:
    """The paths of what is missing, or other, in theirs."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for name, value in ours.items():
            yield from lost(value, theirs.get(name), f"{path}/{name}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{path}/{number}")
    elif ours != theirs:
        yield path


def test_prometheus_parses_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool: it is in Debian's package prometheus")
    queries = [
        {"record": f"query:{number}", "expr": filled(target["expr"])}
        for number, target in enumerate(each for panel in panels() for each in panel["targets"])
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": queries}]}))
    command = [promtool, "check", "rules", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def filled(expression: str, interval: str = "1m") -> str:
    """A query with the variables replaced, as Grafana does for all jobs and instances."""
    chosen = re.sub(r"\$(job|namespace|instance)", ".*", expression)
    return chosen.replace("$__rate_interval", interval)
