"""What docs/deploy and the compose file say, against what there really is."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from etcd_actions import ActionId, ActionStatus, Phase, open_actions_client
from etcd_actions._internal.histogram import Distribution
from etcd_actions.config import SETTINGS, Environment, File, resolve
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import ExecutorStatistics
from etcd_actions.monitoring.health import Health
from etcd_actions.monitoring.metrics import Metrics
from etcd_actions.server import ServerStatistics
from tests.cli.command import ROOT
from tests.support import flyte
from tests.support.waiting import eventually

DEPLOY = ROOT / "docs" / "deploy"
FUNCTIONS = {"by", "histogram_quantile", "increase", "max", "rate", "sum", "up"}
SDK_ROOT = ActionId("p", "d", "r1", "a0", "o")


def expressions() -> Iterator[tuple[str, str]]:
    """Each expression of the alerts and the dashboard, and where it stands."""
    alerts = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    for group in alerts["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    dashboard = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


@pytest.fixture
async def exposed(etcd: Etcd, prefix: bytes) -> dict[str, set[str]]:
    """The metrics of a process in which everything happened, each with its labels."""
    async with open_actions_client(etcd, prefix=prefix) as client:
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
        with client.containment.unit("action", "flyte/r1-a0", parks=True):
            raise RuntimeError("a unit that is parked")
        families = list(metrics.collect())
    found = {each.name: set(each.labels) for family in families for each in family.samples}
    labels = {
        "etcd_actions_watch_reconnects_total": {"cause"},
        "etcd_actions_watch_relists_total": {"reason"},
        "etcd_actions_run_service_calls_total": {"call", "result"},
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
        for names in re.findall(r"by \(([^)]*)\)", bare):
            labels = {name.strip() for name in names.split(",")} - {"instance"}
            found = re.findall(r"[a-z_]+_[a-z_]+", bare)
            metric = next(each for each in found if each not in FUNCTIONS)
            assert labels <= exposed[metric], where
        bare = re.sub(r"by \([^)]*\)|\[[^\]]*\]", "", bare)
        for metric, matchers in re.findall(r"([a-z][a-z_]*[a-z])\s*(?:\{([^}]*)\})?", bare):
            if metric in FUNCTIONS:
                continue
            assert metric in exposed, f"{where}: {metric}"
            used.add(metric)
            labels = set(re.findall(r"([a-z_]+)\s*(?:=~|!~|!=|=)", matchers)) - {"job"}
            assert labels <= exposed[metric], where
    assert len(used) > 30


def test_every_alert_is_explained() -> None:
    told = (ROOT / "docs" / "operations.md").read_text()
    alerts = yaml.safe_load((DEPLOY / "alerts.yml").read_text())
    names = [rule["alert"] for group in alerts["groups"] for rule in group["rules"]]
    assert names
    assert [name for name in names if f"`{name}`" not in told] == []


def settings_in(environment: dict[str, str]) -> None:
    """Variables that are all settings, with values that can be used."""
    known = {setting.variable for setting in SETTINGS}
    assert set(environment) <= known
    assert not resolve(SETTINGS, [Environment(environment)]).errors


def test_the_unit_uses_settings_that_there_are() -> None:
    text = (DEPLOY / "etcd-actions.service").read_text()
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    environment = dict(re.findall(r"^Environment=(\w+)=(\S+)$", text, re.MULTILINE))
    settings_in(environment)
    assert shlex.split(unit["Service"]["ExecStart"])[1:] == ["run"]
    kept = f"/var/lib/{unit['Service']['StateDirectory']}/"
    assert environment["ETCD_ACTIONS_BLOB_DIR"].startswith(kept)


def test_the_sidecar_uses_settings_that_there_are(tmp_path: Any) -> None:
    settings, workload = yaml.safe_load_all((DEPLOY / "sidecar.yml").read_text())
    path = tmp_path / "settings.toml"
    path.write_text(settings["data"]["settings.toml"])
    found = resolve(SETTINGS, [File(path)])
    assert not found.errors
    assert set(tomllib.loads(path.read_text())) <= {setting.name for setting in SETTINGS}
    containers = {each["name"]: each for each in workload["spec"]["template"]["spec"]["containers"]}
    service = containers["etcd-actions"]
    settings_in({each["name"]: each["value"] for each in service["env"]})
    ports = {each["name"]: each["containerPort"] for each in service["ports"]}
    assert ports == {"actions": 8091, "monitoring": 8092}
    assert service["readinessProbe"]["httpGet"]["path"] == "/readyz"
    blobs = Path(tomllib.loads(path.read_text())["blob_dir"])
    assert str(blobs.parent) in {each["mountPath"] for each in service["volumeMounts"]}


def test_the_compose_file_uses_settings_that_there_are() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    assert set(services) == {
        "etcd",
        "actions",
        "etcd-1",
        "etcd-2",
        "etcd-3",
        "actions-cluster",
        "prometheus",
    }
    for name in ("actions", "actions-cluster"):
        settings_in(services[name]["environment"])
        blobs = Path(services[name]["environment"]["ETCD_ACTIONS_BLOB_DIR"])
        mounts = dict(each.split(":")[:2] for each in services[name]["volumes"])
        assert set(mounts) <= set(compose["volumes"])
        assert str(blobs.parent) in mounts.values()
        for dependency in services[name]["depends_on"].values():
            assert dependency == {"condition": "service_healthy"}
    for service in services.values():
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")
    for source in services["prometheus"]["volumes"]:
        assert (ROOT / source.partition(":")[0]).is_file()


def test_the_image_uses_settings_that_there_are() -> None:
    text = (ROOT / "Dockerfile").read_text()
    settings_in(dict(re.findall(r"(ETCD_ACTIONS_[A-Z_]+)=(\S+)", text)))
    assert "USER 65532" in text


def test_the_image_has_what_a_server_may_be_set_to_use() -> None:
    """All extras but those for tasks on this machine, an etcd of one's own, and programs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    extras -= {"all", "embedded", "executor", "flyte", "testing"}
    wanted = f"[{','.join(sorted(extras))}]"
    for name, times in (("Dockerfile", 2), (".ci/deploy", 1)):
        assert (ROOT / name).read_text().count(wanted) == times, name


def test_the_examples_have_an_init_and_a_reload() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = [each for each in services.values() if each.get("image") == "etcd-actions:latest"]
    assert len(ours) == 2
    assert all(each["init"] is True for each in ours)
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "etcd-actions.service")
    assert "-HUP $MAINPID" in unit["Service"]["ExecReload"]
