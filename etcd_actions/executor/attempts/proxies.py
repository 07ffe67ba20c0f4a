"""Keeps the proxies that a task was given away from this machine.

A task may be told of a proxy, to load packages through it. Flyte's SDK asks the service on this
machine over HTTP and would go there through the proxy, which knows another machine under the same
address. The names of the variables are those that curl, gRPC and Python's libraries look at.
"""

from __future__ import annotations

from collections.abc import MutableMapping

_LOOPBACK = ("127.0.0.1", "localhost", "::1", "127.0.0.0/8")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_EXCEPT = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Have no proxy used for the loopback addresses, where an environment names a proxy."""
    if not any(environment.get(name) for name in environment if name.lower() in _PROXIES):
        return
    for name in _EXCEPT:
        # gRPC looks at its own variable only where there is one.
        given = environment.get(name) or environment.get("no_proxy") or environment.get("NO_PROXY")
        hosts = [each.strip() for each in (given or "").split(",") if each.strip()]
        if "*" not in hosts:
            hosts += [each for each in _LOOPBACK if each not in hosts]
        environment[name] = ",".join(hosts)
