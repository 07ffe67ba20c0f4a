"""Collects uploads, inputs and definitions of images that nothing needs any more."""

from etcd_actions.blobs.files import Incomplete
from etcd_actions.uploads.references import Marker
from etcd_actions.uploads.upload_collector import SweepResult, UploadCollector

__all__ = ["Incomplete", "Marker", "SweepResult", "UploadCollector"]
