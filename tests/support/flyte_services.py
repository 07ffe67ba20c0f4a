"""The full names of Flyte's services, as clients call them."""

from __future__ import annotations

IDENTITY = "flyteidl2.auth.IdentityService"
RUNS = "flyteidl2.workflow.RunService"
TASKS = "flyteidl2.task.TaskService"
