"""Examines the etcd that the settings name, and says what is wrong and what to do about it.

Nothing is changed: what must be tried out is tried by requests that cannot take effect.
"""

from etcd_actions.doctor.examination import KINDS, examine
from etcd_actions.doctor.findings import Finding, Kind, Severity, worst
from etcd_actions.doctor.subject import Limits, Subject

__all__ = ["KINDS", "Finding", "Kind", "Limits", "Severity", "Subject", "examine", "worst"]
