"""State for the page from the packages above the service: health, lag, and the local executor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from etcd_actions.etcd.member_states import MemberStates
from etcd_actions.monitoring import Health

if TYPE_CHECKING:
    from etcd_actions.executor import ExecutorStatistics
    from etcd_actions.server.front.cluster_state import ClusterSources


def cluster_sources(
    members: MemberStates,
    health: Health,
    executor: Callable[[], Callable[[], ExecutorStatistics] | None],
) -> ClusterSources:
    """The sources of the state of the cluster; needs the extra ``server``.

    Args:
        members: Reads the states of etcd's members.
        health: The health of the process.
        executor: Returns how to read the counts of the local executor; None while there is none.
    """
    from etcd_actions.server.front.cluster_state import ClusterSources  # noqa: PLC0415

    def counts() -> Mapping[str, int] | None:
        read = executor()
        if read is None:
            return None
        found = read()
        return {
            "running": found.running,
            "waiting": found.waiting,
            "open": found.open_actions,
            "started": found.started,
            "retries": found.retries,
            "ended": sum(found.ended.values()),
        }

    return ClusterSources(
        members=members.read, checks=health.ready, lag=health.lag, executor=counts
    )
