"""Endpoints as etcdctl users write them."""

from __future__ import annotations

import pytest

from etcd_actions.errors import ConfigError
from etcd_actions.etcd.endpoints import Endpoint, parse_endpoints
from tests.support.table import table


@pytest.mark.parametrize(
    ("text", "endpoints"),
    [
        ("127.0.0.1:2379", [Endpoint("127.0.0.1", 2379)]),
        ("http://etcd:2379/", [Endpoint("etcd", 2379, encrypted=False)]),
        ("https://etcd", [Endpoint("etcd", 2379, encrypted=True)]),
        ("etcd", [Endpoint("etcd", 2379)]),
        ("a:1, b:2,,a:1", [Endpoint("a", 1), Endpoint("b", 2)]),
        ("[::1]:2379", [Endpoint("::1", 2379)]),
    ],
)
def test_accepted(text: str, endpoints: list[Endpoint]) -> None:
    """Lists, schemes, default port; doubles count once."""
    assert list(parse_endpoints(text)) == endpoints


def test_ipv6_is_bracketed_again() -> None:
    """gRPC needs the brackets that the parser took off."""
    assert str(Endpoint("::1", 2379)) == "[::1]:2379"


@table(
    ("text", "complaint"),
    [
        ("", "no etcd endpoint"),
        ("ftp://etcd:2379", "'ftp' is not supported"),
        ("[::1:2379", "::1:2379"),
        ("etcd:0", "host:port"),
        ("etcd:99999", "not a number from 1 to 65535"),
        ("http://etcd/path", "host:port"),
        ("user:hidden@etcd:2379", "^an endpoint has a user or password in it: .*--user"),
        ("etcd:port", "etcd:port"),
        ("unix:/run/etcd.sock", "'unix:/run/etcd.sock' is a unix socket.*host:port"),
        ("unix:///run/etcd.sock", "'unix:///run/etcd.sock' is a unix socket.*host:port"),
        ("unix://localhost:2379", "is a unix socket"),
    ],
)
def test_refused(text: str, complaint: str) -> None:
    """The error names the endpoint and says what is wanted."""
    with pytest.raises(ConfigError, match=complaint):
        parse_endpoints(text)
