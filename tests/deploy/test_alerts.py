"""docs/deploy/alerts.yml: which alert fires when, by promtool, and its section of the manual."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.command import ROOT

ALERTS = ROOT / "docs" / "deploy" / "alerts.yml"
JOB = "etcd-actions"

# By alert: the name and labels of the series that makes it fire, and its values a minute apart.
FIRES = {
    "EtcdActionsDown": ("up", "1 0x20"),
    "EtcdActionsNoLeader": ("etcd_actions_leader", "0x20"),
    "EtcdActionsShardUnowned": ("etcd_actions_shard_ownerless_seconds", "0+30x20"),
    "EtcdActionsQuorumLost": ("etcd_actions_quorum_lost", "1x20"),
    "EtcdActionsMemberUnhealthy": ('etcd_actions_etcd_member_healthy{member="m1"}', "0x20"),
    "EtcdActionsNotReady": ("etcd_actions_ready", "0x20"),
    "EtcdActionsWatchSilent": ("etcd_actions_watch_silence_seconds", "61x20"),
    "EtcdActionsLag": ("etcd_actions_watch_lag_seconds", "121x20"),
    "EtcdActionsReconnects": (
        'etcd_actions_watch_reconnects_total{cause="Unavailable"}',
        "0+6x60",
    ),
    "EtcdActionsRelists": ('etcd_actions_watch_relists_total{reason="compacted"}', "0+1x60"),
    "EtcdActionsUndecodable": ("etcd_actions_undecodable_keys", "1x20"),
    "EtcdActionsFailingKeys": ('etcd_actions_queue_failing_keys{queue="outbox"}', "1x20"),
    "EtcdActionsContained": ('etcd_actions_contained_failures_total{unit="action"}', "_x25 1x20"),
    "EtcdActionsParked": ('etcd_actions_parked_units{unit="action"}', "1x20"),
    "EtcdActionsBacklog": ('etcd_actions_queue_keys{queue="outbox"}', "10001x20"),
    "EtcdActionsReportLag": ('etcd_actions_report_lag_seconds_bucket{le="+Inf"}', "0+9x60"),
    "EtcdActionsDeadLetters": ("etcd_actions_dead_letters", "1x20"),
    "EtcdActionsDeadLettersDropped": ("etcd_actions_dead_letters_dropped_total", "0x15 1x20"),
    "EtcdActionsSubscriberLag": ("etcd_actions_subscriber_lag_updates", "50001x20"),
    "EtcdActionsServerErrors": (
        'etcd_actions_requests_total{code="internal",method="Enqueue"}',
        "0+1x60",
    ),
    "EtcdActionsServerUnavailable": ('etcd_actions_requests_total{code="unavailable"}', "0+90x60"),
    "EtcdActionsRateLimited": (
        'etcd_actions_requests_total{code="resource_exhausted"}',
        "0+90x60",
    ),
}
# More series that the expression needs.
TOO = {
    "EtcdActionsReportLag": {
        'etcd_actions_report_lag_seconds_bucket{le="10.0"}': "0+1x60",
        'etcd_actions_report_lag_seconds_bucket{le="30.0"}': "0+9x60",
    }
}
# The same series while all is well; the first form of each that is not here is that it is 0.
WELL = {
    "up": "1x60",
    "etcd_actions_leader": "1x60",
    "etcd_actions_ready": "1x60",
    "etcd_actions_etcd_member_healthy": "1x60",
}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def anchors(page: Path) -> set[str]:
    """Those of the headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_has_a_job_a_severity_and_a_section(rule: dict[str, Any]) -> None:
    bare = re.sub(r"by \([^)]*\)", "", rule["expr"])
    names = re.findall(r"\b(?:etcd_actions_\w+|up)\b(\{[^}]*\})?", bare)
    assert names
    assert all(f'job="{JOB}"' in matchers for matchers in names)
    assert rule["labels"]["severity"] in ("critical", "warning")
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert anchor in anchors(ROOT / page)
    assert rule["annotations"]["summary"]


def of_job(series: str, job: str) -> str:
    labels = f'job="{job}",instance="a:8092"'
    return series.replace("{", f"{{{labels},") if "{" in series else f"{series}{{{labels}}}"


def case(alert: str, series: dict[str, str], job: str, *, fires: bool) -> dict[str, Any]:
    """A test of promtool: whether an alert fires after half an hour."""
    series = {"up": "1x60"} | series
    rule = next(each for each in rules() if each["alert"] == alert)
    made: dict[str, Any] = {"eval_time": "30m", "alertname": alert}
    if fires:
        # Labels are those of the series, as far as the expression keeps them.
        kept = re.search(r"by \(([^)]*)\)", rule["expr"])
        labels = {"job": job, "instance": "a:8092"}
        for each in series:
            labels |= dict(re.findall(r'(\w+)="([^"]*)"', each))
        if alert == "EtcdActionsAbsent":
            kept = re.match(r"(job)", "job")
        if kept is not None:
            names = [name.strip() for name in kept[1].split(",")]
            labels = {name: value for name, value in labels.items() if name in names}
        labels.pop("le", None)
        labels["severity"] = rule["labels"]["severity"]
        texts = {
            name: re.sub(r"\{\{ \$labels\.(\w+) \}\}", lambda place: labels[place[1]], text)
            for name, text in rule["annotations"].items()
        }
        made["exp_alerts"] = [{"exp_labels": labels, "exp_annotations": texts}]
    stretched = {each: re.sub(r"x20$", "x60", values) for each, values in series.items()}
    return {
        "interval": "1m",
        "input_series": [
            {"series": of_job(each, job), "values": values} for each, values in stretched.items()
        ],
        "alert_rule_test": [made],
    }


def cases() -> list[dict[str, Any]]:
    made = [
        case("EtcdActionsAbsent", {}, "another", fires=True) | {"name": "absent"},
        case("EtcdActionsAbsent", {}, JOB, fires=False),
    ]
    made[0]["alert_rule_test"][0]["exp_alerts"][0]["exp_labels"]["job"] = JOB
    for alert, (series, values) in FIRES.items():
        more = TOO.get(alert, {})
        made.append(case(alert, {series: values, **more}, JOB, fires=True))
        made.append(case(alert, {series: values, **more}, "another", fires=False))
        well = WELL.get(series.partition("{")[0], "0x60")
        made.append(case(alert, {series: well}, JOB, fires=False))
    return made


@pytest.mark.slow
def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("there is no promtool: it is in Debian's package prometheus")
    assert {*FIRES, "EtcdActionsAbsent"} == {rule["alert"] for rule in rules()}
    tests = {"rule_files": [str(ALERTS)], "evaluation_interval": "1m", "tests": cases()}
    file = tmp_path / "alerts_test.yml"
    file.write_text(yaml.safe_dump(tests))
    done = subprocess.run(
        [promtool, "test", "rules", str(file)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
