"""All that the SDK's terminal interface asks of a service, without a terminal."""

import json
import sys
import tempfile
import time
from pathlib import Path

import flyte
from flyte.cli._tui._remote import _client as tui
from flyte.models import ActionPhase
from hello import connect

env = flyte.TaskEnvironment(name="tui")


@env.task
async def main() -> bool:
    print("a line of the log")
    approval = await flyte.new_condition.aio("approve", data_type=bool)
    return bool(await approval.wait.aio())


def configuration(endpoint: str, project: str) -> Path:
    path = Path(tempfile.mkdtemp()) / "config.yaml"
    path.write_text(
        f"admin:\n  endpoint: {endpoint}\n  insecure: true\n"
        f"task:\n  project: {project}\n  domain: development\n"
    )
    return path


def condition(run: str, project: str) -> str:
    """The name of the action that waits."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        for each in tui.list_actions_for_run(run, project=project, domain="development"):
            if each.name != "a0" and each.phase == ActionPhase.PAUSED:
                return each.name
        time.sleep(0.1)
    raise TimeoutError(run)


def in_log(lines: list[str]) -> bool:
    return any("a line of the log" in str(each) for each in lines)


if __name__ == "__main__":
    endpoint, project = sys.argv[1:3]
    connect()
    flyte.deploy(env, version="v1")
    signalled, aborted = flyte.run(main), flyte.run(main)
    config = configuration(endpoint, project)
    cluster = tui.init_cluster(config=config)
    tui.activate_project(config=config, project=project, domain=cluster.domain, org=cluster.org)
    scope = {"project": project, "domain": cluster.domain}
    waiting = condition(signalled.name, project)
    condition(aborted.name, project)
    tui.signal_condition_action(signalled.name, waiting, True)
    tui.abort_run(aborted.name)
    for each in (signalled, aborted):
        each.wait(quiet=True)
    told = {
        "projects": project in [each.pb2.id for each in tui.list_projects()],
        "runs": len(tui.list_runs_paginated(**scope).items),
        "succeeded": [
            each.name == signalled.name
            for each in tui.list_runs_paginated(**scope, in_phase=(ActionPhase.SUCCEEDED,)).items
        ],
        "named": len(tui.list_runs_paginated(**scope, task_name="MAIN").items),
        "aborted": str(tui.get_run(aborted.name).phase),
        "actions": len(tui.list_actions_for_run(signalled.name, **scope)),
        "tasks": [each.name for each in tui.list_tasks_paginated(**scope).items],
        "apps": len(tui.list_apps_paginated().items),
        "triggers": len(tui.list_triggers_paginated().items),
        "log": in_log(tui.fetch_log_tail(signalled.name)),
        "log_of_action": in_log(tui.fetch_log_tail(signalled.name, "a0")),
    }
    print(json.dumps(told))
