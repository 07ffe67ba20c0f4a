"""Health and metrics of a process, over HTTP."""

from etcd_actions.monitoring.health import Check, Health
from etcd_actions.monitoring.monitoring import Monitoring, open_monitoring

__all__ = ["Check", "Health", "Monitoring", "open_monitoring"]
