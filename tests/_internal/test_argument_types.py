"""Arguments and settings of a wrong type: a TypeError names them, before they are used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from etcd_actions import Tls, User, WatchingSettings, open_actions_client, open_etcd
from etcd_actions.embedded.embedded_etcd import open_embedded_etcd
from etcd_actions.errors import ConfigError, WrongType
from etcd_actions.executor import ExecutorSettings, ImageSettings, open_executor
from etcd_actions.follow.workqueue import WorkQueueSettings
from etcd_actions.run_service import open_run_service
from etcd_actions.server import ServerSettings, open_actions_server
from etcd_actions.server.service_settings import OidcSettings, PageSettings
from etcd_actions.testing import MemoryStore, open_proxy
from etcd_actions.watch import ReflectorSettings
from etcd_actions.web import Bind, HttpLimits, ServerTls

ANY: Any = object()
CLIENT: Any = MemoryStore().client()
WRONG: dict[str, Callable[[Any], object]] = {
    "endpoints: 5 is of type int: give str or Iterable": lambda wrong: open_etcd(wrong(5)),
    "tls: 'ca.pem' is of type str: give Tls or None": lambda wrong: open_etcd(tls=wrong("ca.pem")),
    "request_timeout: '2' is of type str: give float": lambda wrong: open_etcd(
        request_timeout=wrong("2")
    ),
    "etcd: '127.0.0.1:2379' is of type str: give Etcd": lambda wrong: open_actions_client(
        wrong("127.0.0.1:2379")
    ),
    "prefix: '/a/'": lambda wrong: open_actions_client(CLIENT, prefix=wrong("/a/")),
    "all_namespaces: 'x'": lambda wrong: open_actions_client(CLIENT, all_namespaces=wrong("x")),
    "target: 5": lambda wrong: open_run_service(wrong(5)),
    "data_dir: 'd' is of type str: give Path or None": lambda wrong: open_embedded_etcd(wrong("d")),
    "client: None": lambda wrong: open_executor(wrong(None), ANY),
    "client: 5": lambda wrong: open_actions_server(wrong(5), ServerSettings(bind=Bind("::1", 0))),
    "target: '5' is of type str: give int": lambda wrong: open_proxy(wrong("5")),
    "ca: 'ca.pem' is of type str: give Path or None": lambda wrong: Tls(ca=wrong("ca.pem")),
    "name: None": lambda wrong: User(name=wrong(None), password="p"),
    "elect: 1 is of type int: give bool": lambda wrong: WatchingSettings(elect=wrong(1)),
    "election_ttl: True": lambda wrong: WatchingSettings(election_ttl=wrong(True)),
    "reflector: 5": lambda wrong: WatchingSettings(reflector=wrong(5)),
    "ranges: '4'": lambda wrong: ReflectorSettings(ranges=wrong("4")),
    "soft_bytes: 1.5 is of type float: give int": lambda wrong: WorkQueueSettings(
        soft_bytes=wrong(1.5)
    ),
    "python: 'python3'": lambda wrong: ImageSettings(directory=Path(), python=wrong("python3")),
    "memory: '1G' is of type str: give int or None": lambda wrong: ExecutorSettings(
        python=Path(), service="", state_dir=Path(), memory=wrong("1G")
    ),
    "bind: '127.0.0.1:0' is of type str: give Bind": lambda wrong: ServerSettings(
        bind=wrong("127.0.0.1:0")
    ),
    "scopes: 'openid' is of type str: give tuple": lambda wrong: OidcSettings(
        issuer="", audience="", scopes=wrong("openid")
    ),
    "offers_actions: 'no'": lambda wrong: PageSettings(offers_actions=wrong("no")),
    "connections: '9'": lambda wrong: HttpLimits(connections=wrong("9")),
    "cert: 'cert.pem'": lambda wrong: ServerTls(cert=wrong("cert.pem"), key=Path()),
    "request_timeout: None": lambda wrong: MemoryStore().client(request_timeout=wrong(None)),
}


@pytest.mark.parametrize("reason", WRONG)
async def test_a_wrong_type_is_named(reason: str) -> None:
    with pytest.raises(TypeError) as raised:
        WRONG[reason](lambda value: value)
    assert isinstance(raised.value, WrongType)
    assert f"{raised.value} ".startswith(reason)


def test_a_value_that_is_none_of_a_few_is_named() -> None:
    wrong: Any = "http"
    with pytest.raises(ConfigError, match="transport: 'http' is unknown: give 'grpc' or 'gateway'"):
        open_etcd(transport=wrong)


def test_missing_and_unknown_arguments_are_named_with_the_function() -> None:
    opening: Any = open_actions_client
    with pytest.raises(TypeError, match=r"open_actions_client\(\) missing .* 'etcd'"):
        opening()
    with pytest.raises(TypeError, match=r"open_etcd\(\) got an unexpected .* 'timeout'"):
        open_etcd(timeout=1)  # type: ignore[call-arg]
