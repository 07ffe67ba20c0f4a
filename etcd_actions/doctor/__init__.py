"""Examines the etcd that the settings name, and reports what is wrong and the remedy.

Nothing is changed: permissions to write are tested by transactions that cannot take effect.
"""

from etcd_actions.doctor.examination import KINDS, examine
from etcd_actions.doctor.findings import Finding, Kind, Severity, worst
from etcd_actions.doctor.subject import Limits, Subject

__all__ = ["KINDS", "Finding", "Kind", "Limits", "Severity", "Subject", "examine", "worst"]
