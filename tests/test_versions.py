from __future__ import annotations

import pytest

from etcd_actions.etcd.versions import (
    EtcdVersion,
    has_reliable_progress,
    loses_writes_when_killed,
)


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("3.4.23", (3, 4, 23)),
        ("v3.6.0", (3, 6, 0)),
        ("3.6.0-rc.1", (3, 6, 0)),
        ("3.7.0-alpha.0+git", (3, 7, 0)),
        (" 3.5.21\n", (3, 5, 21)),
    ],
)
def test_parse(text: str, version: tuple[int, int, int]) -> None:
    assert EtcdVersion.parse(text) == version


@pytest.mark.parametrize("text", ["", "3", "3.5", "3.5.x", "3.5.1.2", "etcd 3.5.1", "३.५.१"])
def test_parse_refuses_what_is_no_version(text: str) -> None:
    with pytest.raises(ValueError, match="is no version of etcd"):
        EtcdVersion.parse(text)


def test_prints_as_etcd_writes_it() -> None:
    assert str(EtcdVersion(3, 4, 23)) == "3.4.23"


def test_orders_by_number_not_by_text() -> None:
    assert EtcdVersion.parse("3.4.9") < EtcdVersion.parse("3.4.23")


@pytest.mark.parametrize(
    ("text", "loses"),
    [
        ("3.3.27", True),
        ("3.4.21", True),
        ("3.4.22", False),
        ("3.4.37", False),
        ("3.5.0", True),
        ("3.5.5", True),
        ("3.5.6", False),
        ("3.6.0", False),
        ("4.0.0", False),
    ],
)
def test_loses_writes_when_killed(text: str, loses: bool) -> None:
    assert loses_writes_when_killed(EtcdVersion.parse(text)) is loses


@pytest.mark.parametrize(
    ("text", "reliable"),
    [
        ("3.3.27", False),
        ("3.4.24", False),
        ("3.4.25", True),
        ("3.5.0", False),
        ("3.5.7", False),
        ("3.5.8", True),
        ("3.6.0", True),
        ("4.0.0", True),
    ],
)
def test_has_reliable_progress(text: str, reliable: bool) -> None:
    assert has_reliable_progress(EtcdVersion.parse(text)) is reliable
