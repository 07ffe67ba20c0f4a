"""TLS contexts that are made before a fork: whom they are given to, and who makes his own."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme

from etcd_actions.executor.supervision.ready_tls import ReadyContexts


@pytest.fixture
def authority(tmp_path: Path) -> str:
    path = tmp_path / "authority.pem"
    trustme.CA().cert_pem.write_to_path(path)
    return str(path)


@pytest.fixture
def ready(authority: str) -> Iterator[ReadyContexts]:
    make = ssl.create_default_context
    contexts = ReadyContexts(authority, 2)
    contexts.stand_in()
    yield contexts
    ssl.create_default_context = make


def test_a_context_is_as_a_new_one_and_for_one_caller(ready: ReadyContexts, authority: str) -> None:
    given = [ssl.create_default_context(cafile=authority) for _ in range(3)]
    assert ready.count == 0
    assert len(set(map(id, given))) == 3
    # The last was made when it was asked for.
    *_, new = given
    for context in given:
        assert context.get_ca_certs() == new.get_ca_certs() != []
        for name in ("protocol", "options", "verify_mode", "verify_flags", "check_hostname"):
            assert getattr(context, name) == getattr(new, name), name
        assert context.get_ciphers() == new.get_ciphers()


def test_threads_share_none(ready: ReadyContexts, authority: str) -> None:
    given: list[ssl.SSLContext] = []

    def take() -> None:
        given.append(ssl.create_default_context(cafile=authority))

    threads = [Thread(target=take) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(set(map(id, given))) == 8


def test_any_other_call_makes_its_own(ready: ReadyContexts, authority: str, tmp_path: Path) -> None:
    ssl.create_default_context()
    ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=authority)
    ssl.create_default_context(cafile=authority, capath=str(tmp_path))
    for_clients = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    assert for_clients.verify_mode is ssl.CERT_NONE
    with pytest.raises(FileNotFoundError):
        ssl.create_default_context(cafile=str(tmp_path / "none"))
    assert ready.count == 2


def test_a_file_that_was_changed_is_read_again(
    ready: ReadyContexts, authority: str, tmp_path: Path
) -> None:
    (old,) = ssl.create_default_context(cafile=authority).get_ca_certs()
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(other)
    os.replace(other, authority)  # noqa: PTH105
    (new,) = ssl.create_default_context(cafile=authority).get_ca_certs()
    assert new != old
    Path(authority).unlink()
    with pytest.raises(FileNotFoundError):
        ssl.create_default_context(cafile=authority)


def test_keys_are_logged_where_that_is_asked_for(
    ready: ReadyContexts, authority: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert ssl.create_default_context(cafile=authority).keylog_filename == str(tmp_path / "keys")


def test_a_replaced_way_to_read_authorities_is_used(
    ready: ReadyContexts, authority: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[object] = []
    load = ssl.SSLContext.load_verify_locations

    def loaded(context: ssl.SSLContext, *files: Any) -> None:
        read.extend(files)
        load(context, *files)

    # As what brings the system's authorities in does.
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", loaded)
    ssl.create_default_context(cafile=authority)
    assert authority in read
    assert ready.count == 2
