"""Flyte's run service: who keeps the record of runs that people look at."""

from etcd_actions.run_service.protocol import NullRunService, RunService

__all__ = ["NullRunService", "RunService"]
