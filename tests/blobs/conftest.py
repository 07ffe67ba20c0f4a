"""Each kind of store, empty."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from etcd_actions.blobs import BlobStore, open_blob_store

_numbers = itertools.count()


@pytest.fixture(params=["folder", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> BlobStore:
    if request.param == "folder":
        return open_blob_store(tmp_path / "blobs")
    return open_blob_store(f"memory://bucket{next(_numbers)}/pre/fix")
