"""The state directory is this user's alone, and loses what ended long ago."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from etcd_actions.errors import ConfigError
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.state_dir import prepare_state_dir, sweep
from tests.executor.objects import an_object
from tests.support.odd_files import KINDS

FLAG = "--executor-state-dir"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


@pytest.mark.parametrize("before", [None, 0o777, 0o755, 0o1777, 0o500, 0o2770])
def test_it_is_for_its_user_only_whatever_it_was(tmp_path: Path, before: int | None) -> None:
    path = tmp_path / "below" / "state"
    if before is not None:
        (path / "attempts").mkdir(parents=True)
        (path / "attempts").chmod(before)
        path.chmod(before)
    prepare_state_dir(path)
    prepare_state_dir(path)
    assert mode(path) == 0o700
    assert mode(path / "attempts") == 0o700
    assert sorted(each.name for each in path.iterdir()) == ["attempts", "outputs"]


@pytest.mark.parametrize("kind", [each for each in KINDS if each != "directory"])
@pytest.mark.parametrize("name", ["state", "state/attempts"])
def test_what_is_no_directory_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "state"
    (tmp_path / name).parent.mkdir(exist_ok=True)
    KINDS[kind][0](tmp_path / name)
    with pytest.raises(ConfigError, match=FLAG):
        prepare_state_dir(path)


def test_a_planted_link_to_a_directory_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o755)
    (tmp_path / "state").symlink_to(target)
    with pytest.raises(ConfigError, match=f"{FLAG}.*symbolic link"):
        prepare_state_dir(tmp_path / "state")
    assert mode(target) == 0o755
    assert not list(target.iterdir())


def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives directories away")
    path = tmp_path / "state"
    path.mkdir(mode=0o777)
    try:
        os.chown(path, 65534, 65534)
    except PermissionError:
        pytest.skip("this root gives no directories away")
    with pytest.raises(ConfigError, match=f"{FLAG}.*belongs to user 65534"):
        prepare_state_dir(path)


def test_one_that_cannot_be_written_is_refused_by_the_flags_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{FLAG} /proc/state: it cannot be written"):
        prepare_state_dir(Path("/proc/state"))
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=FLAG):
        prepare_state_dir(tmp_path / "file" / "state")


def test_a_read_only_file_system_is_refused_by_the_flags_name(tmp_path: Path) -> None:
    directory = tmp_path / "disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,mode=700", "tmpfs", str(directory)]
    try:
        made = subprocess.run(mount, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount")
    if made.returncode:
        pytest.skip("only root mounts a file system")
    try:
        for path in (directory, directory / "state"):
            with pytest.raises(ConfigError, match=f"{FLAG}.*Read-only file system"):
                prepare_state_dir(path)
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def attempt(state_dir: Path, uid: str, number: int, age: float) -> AttemptDirectory:
    """An attempt that ended some seconds ago."""
    place = AttemptDirectory(state_dir, an_object(uid=uid), number)
    place.make()
    for name in ("started", "exit", "log", "lock"):
        (place.path / name).write_text("0")
        os.utime(place.path / name, (0, time.time() - age))
    os.utime(place.path, (0, time.time() - age))
    return place


def test_what_ended_long_ago_is_removed_and_nothing_else(tmp_path: Path) -> None:
    old, young = attempt(tmp_path, "a", 1, 100), attempt(tmp_path, "a", 2, 10)
    alone = attempt(tmp_path, "b", 1, 100)
    living, open_ = attempt(tmp_path, "c", 1, 100), attempt(tmp_path, "d", 1, 100)
    late = attempt(tmp_path, "e", 1, 100)
    os.utime(late.path / "exit")
    odd = attempt(tmp_path, "../odd", 1, 100)
    lock = living.try_lock()
    assert lock is not None
    try:
        assert sweep(tmp_path, 50, {an_object(uid="d").path_component}) == (3, [])
    finally:
        os.close(lock)
    for place in (young, living, open_, late):
        assert (place.path / "exit").exists()
    for place in (old, alone, odd):
        assert not place.path.exists()
    assert not alone.path.parent.exists()
    assert not odd.path.parent.exists()
    assert sweep(tmp_path, 50, {an_object(uid="d").path_component}) == (1, [])
    assert not living.path.exists()


def test_whatever_a_task_has_put_there_is_removed(tmp_path: Path) -> None:
    """Without following links out of it."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    places = []
    for number, (make, _) in enumerate(KINDS.values()):
        place = attempt(tmp_path, f"uid{number}", 1, 0)
        (place.path / "work").mkdir()
        make(place.path / "work" / "thing")
        (place.path / "work" / "link").symlink_to(kept)
        (place.path / "lock").unlink()
        make(place.path / "lock")
        places.append(place)
    deep = attempt(tmp_path, "deep", 1, 0)
    subprocess.run(
        [
            sys.executable,
            "-c",
            "import os\nfor _ in range(1500):\n    os.mkdir('d')\n    os.chdir('d')",
        ],
        cwd=deep.path,
        check=True,
    )
    (deep.path / "closed").mkdir(mode=0o000)
    places.append(deep)
    assert sweep(tmp_path, -10, set()) == (len(places), [])
    assert not list((tmp_path / "attempts").iterdir())
    assert (kept / "file").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_other_things_in_the_directory_are_left_alone(tmp_path: Path, kind: str) -> None:
    for path in (tmp_path / "attempts" / "x", tmp_path / "attempts" / "a" / "1"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind != "directory":
            KINDS[kind][0](path)
            assert sweep(tmp_path, -10, set()) == (0, [])
            assert os.path.lexists(path)
