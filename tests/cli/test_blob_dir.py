"""Where ``--blob-dir`` says that blobs are, and what becomes of a process without a place."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_actions.app.front_door import blob_store
from etcd_actions.blobs.folder import FolderStore
from etcd_actions.blobs.object_store import ObjectStore
from etcd_actions.blobs.open_store import NoStore
from etcd_actions.config.settings import BLOB_DIR
from etcd_actions.errors import ConfigError, FailedPrecondition
from tests.cli.test_config import load


def test_a_folder_or_a_url(tmp_path: Path) -> None:
    folder = blob_store(load(blob_dir=str(tmp_path / "here")))
    assert isinstance(folder, FolderStore)
    assert folder.native_url("a/b") == f"{tmp_path}/here/a/b"
    assert isinstance(blob_store(load(blob_dir="memory://x/y")), ObjectStore)


def test_the_default_is_beside_the_embedded_etcd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ETCD_ACTIONS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert blob_store(load()).native_url("a") == f"{tmp_path}/etcd-actions/blobs/a"


def test_what_was_asked_for_and_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for unusable in (str(tmp_path / "file/below"), "nothing-like-this://x"):
        with pytest.raises(ConfigError, match=BLOB_DIR.flag):
            blob_store(load(blob_dir=unusable))


@pytest.mark.parametrize("text", ["s3://user@x/y", "s3://x?y", "S 3://x", "s3://x#y", "a\0b"])
def test_what_is_no_url_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=BLOB_DIR.flag):
        load(blob_dir=text)


async def test_without_a_place_only_what_needs_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etcd-actions").touch()
    monkeypatch.delenv("ETCD_ACTIONS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    store = blob_store(load())
    assert isinstance(store, NoStore)
    assert store.key_of("/etc/passwd") is None
    with pytest.raises(FailedPrecondition, match=BLOB_DIR.flag):
        await store.stat("a")
    with pytest.raises(FailedPrecondition, match=BLOB_DIR.flag):
        store.native_url("a")
