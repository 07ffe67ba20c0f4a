"""Where the run service listens."""

from __future__ import annotations

import pytest

from etcd_actions.errors import ConfigError
from etcd_actions.etcd.endpoints import Endpoint
from etcd_actions.run_service.target import parse_target
from tests.support.table import table


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("10.0.0.7:8090", Endpoint("10.0.0.7", 8090)),
        ("http://localhost:8090", Endpoint("localhost", 8090, False)),
        ("http://runs.example.org", Endpoint("runs.example.org", 80, False)),
        ("https://runs.example.org/", Endpoint("runs.example.org", 443, True)),
        ("[::1]:8090", Endpoint("::1", 8090)),
    ],
)
def test_good_ones(text: str, target: Endpoint) -> None:
    assert parse_target(text) == target


@table(
    ("text", "problem"),
    [
        ("", "run service ''"),
        ("localhost", "use host:port"),
        ("localhost:0", "use host:port"),
        ("localhost:port", "use host:port"),
        ("localhost:70000", "out of range"),
        ("https://runs.example.org/api", "use host:port"),
        ("grpc://localhost:8090", "scheme 'grpc' is not supported"),
    ],
)
def test_bad_ones(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse_target(text)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(ConfigError, match="user or password") as raised:
        parse_target("http://worker:secret-5f1c@localhost:8090")
    assert "secret-5f1c" not in str(raised.value)
