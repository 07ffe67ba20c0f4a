"""Collects uploads, inputs and definitions of images that nothing needs any more."""

from etcd_actions.blobs.files import Incomplete
from etcd_actions.uploads.collector import Swept, UploadCollector
from etcd_actions.uploads.mark import Marker

__all__ = ["Incomplete", "Marker", "Swept", "UploadCollector"]
