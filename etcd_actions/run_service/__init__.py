"""Clients of Flyte's run service, which keeps the records of runs for the console."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from etcd_actions.run_service.protocol import NullRunService, RunService

if TYPE_CHECKING:
    from etcd_actions.run_service.grpc_run_service import GrpcRunService, open_run_service

__all__ = ["GrpcRunService", "NullRunService", "RunService", "open_run_service"]


def __getattr__(name: str) -> Any:
    """Import gRPC when it is first used."""
    if name not in ("GrpcRunService", "open_run_service"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from etcd_actions.run_service import grpc_run_service  # noqa: PLC0415

    return getattr(grpc_run_service, name)
