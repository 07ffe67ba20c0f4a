"""What docs/deploy and the compose file say, against what there really is."""

from __future__ import annotations

import configparser
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from etcd_actions.config import SETTINGS, Environment, File, resolve
from tests.cli.command import ROOT

DEPLOY = ROOT / "docs" / "deploy"


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
        "grafana",
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
    # All that is no member of the cluster comes up by itself.
    assert {name for name, each in services.items() if "profiles" not in each} == {
        *("etcd", "actions", "prometheus", "grafana")
    }
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (ROOT / source).exists(), volume
            assert source in compose["volumes"] or volume.endswith(":ro")


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    grafana, folder = services["grafana"], DEPLOY / "grafana"
    mounts = {
        there: (ROOT / here).resolve()
        for here, there, _ in (each.split(":") for each in grafana["volumes"])
    }
    provisioning = "/etc/grafana/provisioning"
    assert mounts[f"{provisioning}/datasources"] == folder / "datasources"
    assert mounts[f"{provisioning}/dashboards"] == folder / "dashboards"
    (source,) = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    name, _, port = source["url"].removeprefix("http://").partition(":")
    assert f"127.0.0.1:{port}:{port}" in services[name]["ports"]
    assert (source["type"], source["isDefault"]) == ("prometheus", True)
    scraping = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    ((target,),) = [each["targets"] for each in scraping["scrape_configs"][0]["static_configs"]]
    service, _, monitoring = target.partition(":")
    assert f"127.0.0.1:{monitoring}:{monitoring}" in services[service]["ports"]
    (provider,) = yaml.safe_load((folder / "dashboards" / "etcd-actions.yml").read_text())[
        "providers"
    ]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"] + "/")
    assert mounts[home] == DEPLOY / "grafana-dashboard.json"


@pytest.mark.slow
def test_compose_accepts_the_file() -> None:
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("there is no docker-compose")
    done = subprocess.run(
        [program, "--file", ROOT / "docker-compose.yml", "--profile", "cluster", "config", "-q"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_prometheus_accepts_its_configuration() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool: it is in Debian's package prometheus")
    done = subprocess.run(
        [promtool, "check", "config", DEPLOY / "prometheus.yml"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


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
