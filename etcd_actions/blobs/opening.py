"""Which store of blobs a setting means."""

from __future__ import annotations

from pathlib import Path

from etcd_actions.blobs.folder import FolderStore
from etcd_actions.blobs.object_store import ObjectStore
from etcd_actions.blobs.protocol import BlobStore
from etcd_actions.untrusted_files import local_path


def open_blob_store(where: Path | str) -> BlobStore:
    """The store; there is nothing to close.

    Args:
        where: A folder, or a URL that fsspec knows.

    Raises:
        ConfigError: It cannot be used; the message says why.
    """
    if isinstance(where, str):
        if (path := local_path(where)) is None:
            return ObjectStore(where)
        where = path
    return FolderStore(where.absolute())
