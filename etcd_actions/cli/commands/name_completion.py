"""Completion of the names of runs and actions in a shell.

A prompt must never wait or show an error. If etcd or the service is slow, unavailable or refuses
the request, there are no candidates. A thread ends the process after half a second of waiting.
"""

from __future__ import annotations

import os
import re
import threading
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from etcd_actions.cli.options import CommonOptions

_WITHIN: Final = 0.5
"""Seconds that etcd or the service has: then the process ends without candidates."""
_MOST: Final = 500
"""Keys that are read; more candidates than a screen has are of no use."""


def completes_names(param: click.Parameter) -> bool:
    """Whether the values of a parameter are names of runs or actions."""
    return re.match(r"\[?(RUN|ACTION)\b", param.metavar or "") is not None


def complete_name(ctx: click.Context, param: click.Parameter, start: str) -> list[str]:
    """The names that begin with a text: runs, and after a slash actions of the run."""
    run, slash, rest = start.partition("/")
    if slash and ("/" in rest or not run or "ACTION" not in (param.metavar or "")):
        return []
    try:
        # A line break, or an escape sequence, would be one of the shell's.
        return sorted({each for each in _names(ctx, run, slash, rest) if each.isprintable()})
    except BaseException:
        # A prompt has no place for a report, whatever failed.
        return []


def _names(ctx: click.Context, run: str, slash: str, rest: str) -> list[str]:
    import trio  # noqa: PLC0415 (slow to import)

    import etcd_actions.cli.keys  # noqa: PLC0415 (imports the transport)
    from etcd_actions.cli.options import quiet_options  # noqa: PLC0415
    from etcd_actions.config.settings import SERVICE  # noqa: PLC0415

    common = quiet_options(ctx.params)
    # A command without the flag uses etcd, whatever a variable says.
    of_service = SERVICE.name in ctx.params and common.config[SERVICE] is not None
    if of_service:
        import etcd_actions.cli.backends  # noqa: F401, PLC0415
    # The imports are done: only the network can take long.
    timer = threading.Timer(_WITHIN, os._exit, (0,))
    timer.daemon = True
    timer.start()
    try:
        return trio.run(_read, common, of_service, run, slash, rest)
    finally:
        timer.cancel()


async def _read(
    common: CommonOptions, of_service: bool, run: str, slash: str, rest: str
) -> list[str]:
    if not of_service:
        async with common.open_etcd() as etcd:
            return await _names_in_etcd(etcd, common, run, slash, rest)
    from etcd_actions.cli.backends import open_service  # noqa: PLC0415
    from etcd_actions.cli.names import Name  # noqa: PLC0415

    async with open_service(common) as service:
        name = Name(run=run, action="*") if slash else Name()
        found = await service.names.similar(name)
    return [each for each in found if each.startswith(f"{run}{slash}{rest}")]


async def _names_in_etcd(
    etcd: Any, common: CommonOptions, run: str, slash: str, rest: str
) -> list[str]:
    from etcd_actions.cli.keys import find_namespaces  # noqa: PLC0415
    from etcd_actions.model import ROOT_ACTION, Keyspace  # noqa: PLC0415

    async def tails(prefix: bytes) -> list[str]:
        page = await etcd.range(KeyRange.of_prefix(prefix), limit=_MOST, keys_only=True)
        return [kv.key[len(prefix) :].decode(errors="surrogateescape") for kv in page.kvs]

    from etcd_actions.etcd.api import KeyRange  # noqa: PLC0415

    keys = Keyspace(common.prefix)
    found: list[str] = []
    namespaces, _ = await find_namespaces(etcd, common.prefix, common.namespace)
    for namespace in namespaces:
        if slash:
            own = f"{namespace}/{run}-{rest}".encode()
            found += [f"{run}/{rest}{tail}" for tail in await tails(common.prefix + own)]
            continue
        records = await tails(keys.runs + f"{namespace}/{run}".encode())
        found += [run + tail for tail in records]
        if not records:
            # The leader may keep no records.
            end = f"-{ROOT_ACTION}"
            names = await tails(common.prefix + f"{namespace}/{run}".encode())
            found += [run + each.removesuffix(end) for each in names if each.endswith(end)]
    return found
