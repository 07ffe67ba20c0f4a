"""Collects uploads, inputs and definitions of images that nothing needs any more."""

from etcd_actions.uploads.collector import Swept, UploadCollector
from etcd_actions.uploads.files import ReferencedFiles
from etcd_actions.uploads.mark import Incomplete, Marker

__all__ = ["Incomplete", "Marker", "ReferencedFiles", "Swept", "UploadCollector"]
