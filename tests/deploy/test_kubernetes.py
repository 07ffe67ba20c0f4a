"""The manifest of workers on Kubernetes: by Kubernetes' schemas, its own parts and the settings."""

from __future__ import annotations

import copy
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from etcd_actions.app.worker import Worker
from etcd_actions.config import SETTINGS, Environment, File, resolve
from etcd_actions.config.resolution import Resolution
from etcd_actions.config.settings import (
    CPUS,
    DRAIN_DELAY,
    EXECUTOR_MEMORY,
    EXECUTOR_SLOTS,
    GRACE,
    MONITORING_LISTEN,
)
from tests.cli.command import ROOT
from tests.deploy.kubernetes_models import mistakes, model
from tests.support.documents import block
from tests.support.table import table

DEPLOY = ROOT / "docs" / "deploy"
DOCUMENTS: dict[str, dict[str, Any]] = {
    each["kind"]: each
    for each in yaml.safe_load_all((DEPLOY / "kubernetes-worker.yml").read_text())
}
# The fields of KEDA 2's ScaledObject and of its Prometheus scaler, as far as they are used.
SCALED_OBJECT = {
    "apiVersion": "keda.sh/v1alpha1",
    "spec": {
        *("scaleTargetRef", "pollingInterval", "cooldownPeriod", "minReplicaCount"),
        *("maxReplicaCount", "fallback", "advanced", "triggers"),
    },
    "trigger": {"type", "metricType", "metadata"},
    "prometheus": {
        *("serverAddress", "query", "threshold", "activationThreshold", "ignoreNullValues"),
    },
}


def container() -> dict[str, Any]:
    (only,) = DOCUMENTS["Deployment"]["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = only
    return found


@pytest.fixture
def resolved(tmp_path: Path) -> Resolution:
    """The settings of a worker in its pod."""
    path = tmp_path / "worker.toml"
    path.write_text(DOCUMENTS["ConfigMap"]["data"]["worker.toml"])
    known = {setting.name for setting in SETTINGS}
    assert set(tomllib.loads(path.read_text())) <= known
    environment = {each["name"]: each["value"] for each in container()["env"]}
    assert set(environment) <= {setting.variable for setting in SETTINGS}
    found = resolve(SETTINGS, [Environment(environment), File(path)])
    assert not found.errors
    return found


MODELS = {
    "ConfigMap": ("core_v1", "v1"),
    "Deployment": ("apps_v1", "apps/v1"),
    "PodDisruptionBudget": ("policy_v1", "policy/v1"),
}


@table("kind", MODELS)
def test_kubernetes_own_models_accept_it(kind: str) -> None:
    """Strictly: a field that they do not have is a mistake."""
    module, version = MODELS[kind]
    assert DOCUMENTS[kind]["apiVersion"] == version
    assert list(mistakes(DOCUMENTS[kind], model(module, kind))) == []


def test_the_models_find_mistakes() -> None:
    wrong = copy.deepcopy(DOCUMENTS["Deployment"])
    pod = wrong["spec"]["template"]["spec"]
    pod["terminationGracePeriod"] = 630
    pod["containers"][0]["ports"][0]["containerPort"] = "8092"
    pod["volumes"].append({"configMap": {"name": "x"}})
    wrong["spec"]["template"]["metadata"]["labels"] = {"pool": True}
    assert list(mistakes(wrong, model("apps_v1", "Deployment"))) == [
        ".spec.template.metadata.labels.pool: True is no text or number",
        ".spec.template.spec.terminationGracePeriod: unknown",
        ".spec.template.spec.containers[0].ports[0].containerPort: '8092' is no int",
        ".spec.template.spec.volumes[5].name: missing",
    ]


def test_the_times_and_sizes_fit(resolved: Resolution) -> None:
    pod = DOCUMENTS["Deployment"]["spec"]["template"]["spec"]
    grace = resolved[GRACE].value + resolved[DRAIN_DELAY].value + Worker.ENDS_WITHIN
    assert pod["terminationGracePeriodSeconds"] >= grace + 10
    # The pod has what the worker offers, and some memory more.
    resources = container()["resources"]
    assert float(resources["requests"]["cpu"]) == resolved[CPUS].value
    assert resources["limits"]["memory"] == resources["requests"]["memory"] == "8Gi"
    memory = resolved[EXECUTOR_MEMORY].value
    assert memory is not None
    assert memory <= 7 * 1024**3


def test_probes_and_ports(resolved: Resolution) -> None:
    (port,) = container()["ports"]
    bind = resolved[MONITORING_LISTEN].value
    assert bind is not None
    assert (port["name"], port["containerPort"]) == ("monitoring", bind.port)
    assert not bind.is_loopback
    paths = {
        name: container()[name]["httpGet"]
        for name in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert all(each["port"] == "monitoring" for each in paths.values())
    # etcd's absence must not restart the pod: only readiness depends on it.
    assert [each["path"] for each in paths.values()] == ["/healthz", "/healthz", "/readyz"]
    annotations = DOCUMENTS["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == str(bind.port)


def test_the_objects_name_each_other() -> None:
    deployment, budget = DOCUMENTS["Deployment"], DOCUMENTS["PodDisruptionBudget"]
    scaled = DOCUMENTS["ScaledObject"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert budget["spec"]["selector"]["matchLabels"] == labels
    assert scaled["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    # They are KEDA's.
    assert "replicas" not in deployment["spec"]
    pod = deployment["spec"]["template"]["spec"]
    volumes = {each["name"] for each in pod["volumes"]}
    mounts = {each["name"]: each["mountPath"] for each in container()["volumeMounts"]}
    assert set(mounts) == volumes
    (settings,) = [each for each in pod["volumes"] if each["name"] == "settings"]
    assert settings["configMap"]["name"] == DOCUMENTS["ConfigMap"]["metadata"]["name"]
    arguments = container()["args"]
    assert arguments[0] == "worker"
    assert Path(arguments[2]).parent == Path(mounts["settings"])
    text = DOCUMENTS["ConfigMap"]["data"]["worker.toml"]
    written = tomllib.loads(text)
    for path, name in ((written["blob_dir"], "blobs"), (written["password_file"], "secrets")):
        assert path.startswith(mounts[name] + "/")
    state = {each["name"]: each["value"] for each in container()["env"]}
    assert state["ETCD_ACTIONS_EXECUTOR_STATE_DIR"].startswith(mounts["state"] + "/")
    # The root file system is read-only, so nothing else is written.
    assert container()["securityContext"]["readOnlyRootFilesystem"] is True
    assert pod["automountServiceAccountToken"] is False


def test_it_scales_by_the_demand(resolved: Resolution) -> None:
    scaled = DOCUMENTS["ScaledObject"]
    assert scaled["apiVersion"] == SCALED_OBJECT["apiVersion"]
    assert set(scaled["spec"]) <= SCALED_OBJECT["spec"]  # type: ignore[operator]
    (trigger,) = scaled["spec"]["triggers"]
    assert set(trigger) == SCALED_OBJECT["trigger"]
    metadata = trigger["metadata"]
    assert set(metadata) == SCALED_OBJECT["prometheus"]
    # KEDA's metadata are texts, also numbers.
    assert all(isinstance(each, str) for each in metadata.values())
    assert trigger["type"] == "prometheus"
    # One pod for as many actions as it has slots.
    assert trigger["metricType"] == "AverageValue"
    assert int(metadata["threshold"]) == resolved[EXECUTOR_SLOTS].value
    assert metadata["ignoreNullValues"] == "false"
    assert scaled["spec"]["fallback"]["replicas"] > 0
    assert one_line(metadata["query"]) == one_line(block("docs/deploy/workers.md", "promql").text)
    # Of this object only the behaviour is Kubernetes' own.
    behaviour = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    kind = model("autoscaling_v2", "HorizontalPodAutoscalerBehavior")
    assert list(mistakes(behaviour, kind)) == []


def one_line(expression: str) -> str:
    return re.sub(r"\s+", " ", expression.replace("( ", "(")).strip()


def test_prometheus_gives_workers_the_pool_of_their_pod(tmp_path: Path) -> None:
    """By promtool, without the discovery, which Debian's build does not have."""
    text = yaml.safe_load((DEPLOY / "prometheus-kubernetes.yml").read_text())
    service, workers = text["scrape_configs"]
    labels = DOCUMENTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
    kept = [rule for rule in workers["relabel_configs"] if rule.get("action") == "keep"]
    assert [rule["regex"] for rule in kept] == [labels["app"], "monitoring"]
    rules = {rule.get("target_label"): rule["source_labels"] for rule in workers["relabel_configs"]}
    assert rules["pool"] == ["__meta_kubernetes_pod_label_pool"]
    assert "pool" in labels
    # The service's own label of a metric must not be replaced.
    assert "pool" not in {rule.get("target_label") for rule in service["relabel_configs"]}
    for job in (service, workers):
        assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool: it is in Debian's package prometheus")
    file = tmp_path / "prometheus.yml"
    file.write_text(yaml.safe_dump(text))
    done = subprocess.run(
        [program, "check", "config", file], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
