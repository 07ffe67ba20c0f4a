"""Environments of processes: of our helpers, and of tasks that use a proxy."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from typing import Final

# Tasks can read a helper's environment, since they run as the same user: any other variable may be
# a password or a token.
_ALLOWED: Final = (
    *("HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "LOGNAME"),
    *("PATH", "SHELL", "TMPDIR", "TZ", "USER"),
)
_LOOPBACK: Final = ("127.0.0.1", "localhost", "::1", "127.0.0.0/8")
# The variables that curl, gRPC and Python's libraries read.
_PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_EXCEPT: Final = ("no_proxy", "NO_PROXY", "no_grpc_proxy")


def helper_environment() -> dict[str, str]:
    """The part of our environment that the fork server and the supervisors get."""
    return {name: os.environ[name] for name in _ALLOWED if name in os.environ}


def spare_loopback(environment: MutableMapping[str, str]) -> None:
    """Exclude the loopback addresses from the proxies that an environment names.

    Flyte's SDK calls the service on this machine over HTTP. Through a proxy it would reach another
    machine under the same address.
    """
    if not any(environment.get(name) for name in environment if name.lower() in _PROXIES):
        return
    for name in _EXCEPT:
        # If gRPC's own variable is set, gRPC reads no other.
        given = environment.get(name) or environment.get("no_proxy") or environment.get("NO_PROXY")
        hosts = [each.strip() for each in (given or "").split(",") if each.strip()]
        if "*" not in hosts:
            hosts += [each for each in _LOOPBACK if each not in hosts]
        environment[name] = ",".join(hosts)
