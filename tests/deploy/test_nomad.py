"""The job for Nomad: it is HCL, its times fit, and its numbers agree."""

from __future__ import annotations

from typing import Any

import pytest

from etcd_actions.app.worker import Worker
from etcd_actions.config import SETTINGS, Environment, resolve
from etcd_actions.config.settings import CPUS, DRAIN_DELAY, GRACE, MONITORING_LISTEN
from tests.cli.command import ROOT
from tests.deploy.test_kubernetes import one_line
from tests.support.documents import block

# The parser takes seconds.
pytestmark = pytest.mark.slow

FILE = ROOT / "docs" / "deploy" / "worker.nomad.hcl"
# The blocks of a job, each with the blocks that are in it here.
BLOCKS: dict[str, set[str]] = {
    "job": {"group"},
    "group": {
        *("scaling", "restart", "reschedule", "update", "migrate", "ephemeral_disk"),
        *("network", "service", "task"),
    },
    "task": {"config", "env", "resources"},
}


@pytest.fixture(scope="module")
def parsed() -> dict[str, Any]:
    hcl2 = pytest.importorskip("hcl2", reason="scripts/_venv installs python-hcl2")
    with FILE.open() as file:
        found: dict[str, Any] = plain(hcl2.load(file))
    return found


def plain(value: Any) -> Any:
    """What hcl2 read: names and texts without their quotes, blocks that are there once as such."""
    if isinstance(value, dict):
        return {
            name.strip('"'): plain(each)
            for name, each in value.items()
            if name not in ("__is_block__", "__comments__", "__inline_comments__")
        }
    if isinstance(value, list):
        if len(value) == 1 and isinstance(value[0], dict):
            return plain(value[0])
        return [plain(each) for each in value]
    if isinstance(value, str) and value.startswith('"'):
        return value[1:-1].replace('\\"', '"')
    return value


def seconds(text: str) -> int:
    units = {"s": 1, "m": 60}
    return int(text[:-1]) * units[text[-1]]


def test_it_has_the_blocks_of_a_job(parsed: dict[str, Any]) -> None:
    """A block at another place would be ignored, or refused."""
    assert set(parsed) == {"variable", "job"}
    job = parsed["job"]["etcd-actions-worker"]
    assert {name for name, each in job.items() if isinstance(each, dict)} == {"group"}
    group = job["group"]["default"]
    assert {name for name, each in group.items() if isinstance(each, dict)} == BLOCKS["group"]
    task = group["task"]["worker"]
    assert {name for name, each in task.items() if isinstance(each, dict)} == BLOCKS["task"]


def test_its_settings_exist_and_its_times_fit(parsed: dict[str, Any]) -> None:
    group = parsed["job"]["etcd-actions-worker"]["group"]["default"]
    task = group["task"]["worker"]
    slots = next(each["slots"] for each in parsed["variable"] if "slots" in each)
    endpoints = next(each["etcd"] for each in parsed["variable"] if "etcd" in each)
    assert "default" not in endpoints
    environment = dict(task["env"])
    assert environment["ETCD_ACTIONS_EXECUTOR_SLOTS"] == "${var.slots}"
    assert environment["ETCDCTL_ENDPOINTS"] == "${var.etcd}"
    environment |= {
        "ETCD_ACTIONS_EXECUTOR_SLOTS": str(slots["default"]),
        "ETCDCTL_ENDPOINTS": "10.0.0.5:2379",
    }
    assert set(environment) <= {setting.variable for setting in SETTINGS}
    resolved = resolve(SETTINGS, [Environment(environment)])
    assert not resolved.errors
    grace = resolved[GRACE].value + resolved[DRAIN_DELAY].value + Worker.ENDS_WITHIN
    assert seconds(task["kill_timeout"]) >= grace + 10
    assert task["kill_signal"] == "SIGTERM"
    assert resolved[CPUS].value == task["resources"]["cores"]
    bind = resolved[MONITORING_LISTEN].value
    assert bind is not None
    assert group["network"]["port"]["monitoring"]["to"] == bind.port
    assert not bind.is_loopback
    assert group["service"]["check"]["path"] == "/readyz"
    assert group["service"]["port"] == "monitoring"
    assert task["config"]["ports"] == ["monitoring"]
    (volume,) = task["config"]["volumes"]
    assert environment["ETCD_ACTIONS_BLOB_DIR"].startswith(volume.split(":")[1] + "/")
    # A worker that cannot start is tried without end.
    assert group["restart"]["mode"] == "delay"
    assert group["reschedule"]["unlimited"] is True


def test_it_scales_by_the_demand(parsed: dict[str, Any]) -> None:
    group = parsed["job"]["etcd-actions-worker"]["group"]["default"]
    scaling = group["scaling"]
    assert scaling["min"] <= group["count"] <= scaling["max"]
    check = scaling["policy"]["check"]["queue"]
    slots = next(each["slots"] for each in parsed["variable"] if "slots" in each)["default"]
    demand = one_line(block("docs/deploy/workers.md", "promql").text)
    # The result is the count, so it is divided here.
    assert check["query"] == f"ceil(({demand}) / {slots})"
    assert check["strategy"] == {"pass-through": {}}
