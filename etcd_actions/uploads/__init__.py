"""The collection of uploads, inputs and definitions of images to which nothing refers any more."""

from etcd_actions.blobs.searched_files import Incomplete
from etcd_actions.uploads.marker import Marker
from etcd_actions.uploads.upload_collector import SweepResult, UploadCollector

__all__ = ["Incomplete", "Marker", "SweepResult", "UploadCollector"]
