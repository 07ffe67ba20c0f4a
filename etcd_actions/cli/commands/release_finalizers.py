"""``etcd-actions release-finalizers``: has an API server remove our finalizer.

Only the API server can change values that it encrypts at rest. The command calls it through
``kubectl``, with the configuration and the permissions of the user. Each patch tests the index of
the finalizer, so that it undoes no change of another client; a changed object is listed again.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import Final, NamedTuple

import trio

from etcd_actions._internal.quoting import clipped, printable
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.errors import ConfigError, ServiceRefused
from etcd_actions.model import FINALIZER_RECORD

_RESOURCE: Final = "taskactions.flyte.org"
# A line for each of our finalizers: namespace, name, index in the list.
_TEMPLATE: Final = (
    "{{range .items}}{{$m := .metadata}}{{range $i, $f := $m.finalizers}}"
    '{{if eq $f "' + FINALIZER_RECORD + '"}}{{$m.namespace}} {{$m.name}} {{$i}}{{"\\n"}}{{end}}'
    "{{end}}{{end}}"
)
_LINE: Final = re.compile(r"([a-z0-9][-a-z0-9.]*) ([a-z0-9][-a-z0-9.]*) ([0-9]+)")
# Patches at a time, and rounds: each lists the objects again that changed in between.
_CONCURRENCY: Final = 4
_ROUNDS: Final = 10


class _HeldObject(NamedTuple):
    """An object with our finalizer, and the index of that in its list."""

    namespace: str
    name: str
    at: int


async def release_finalizers(namespace: str | None, context: str | None, *, dry_run: bool) -> int:
    """Remove our finalizer from all TaskActions of an API server.

    Args:
        namespace: The only namespace; None for all.
        context: The context of kubectl's configuration; None for the current one.
        dry_run: Only print the objects that have it.

    Raises:
        ConfigError: There is no ``kubectl``.
        ServiceRefused: kubectl failed; the objects so far are changed.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ConfigError("there is no kubectl on PATH: it is needed to call an API server")
    command = [kubectl, *([] if context is None else [f"--context={context}"])]
    released, failure = 0, ""
    for _ in range(_ROUNDS):
        held = await _list(command, namespace)
        if dry_run:
            for item in held:
                print(f"{item.namespace}/{item.name}")
            print_message(f"{len(held)} actions have {FINALIZER_RECORD}; nothing was changed")
            return ExitCode.OK
        if not held:
            print_message(f"removed {FINALIZER_RECORD} from {released} actions; no other has it")
            return ExitCode.OK
        failures = await _patch_all(command, held)
        released += len(held) - len(failures)
        failure = failures[-1] if failures else ""
        if len(failures) == len(held):
            break
    raise ServiceRefused(
        f"removed {FINALIZER_RECORD} from {released} actions; others still have it: {failure}"
    )


async def _list(command: list[str], namespace: str | None) -> list[_HeldObject]:
    where = "--all-namespaces" if namespace is None else f"--namespace={namespace}"
    output, error = await _kubectl(
        [*command, "get", _RESOURCE, where, f"--output=go-template={_TEMPLATE}"]
    )
    if error is not None:
        raise ServiceRefused(f"kubectl get {_RESOURCE}: {error}")
    held = []
    for line in output.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ServiceRefused(f"kubectl get {_RESOURCE} printed no name: {line[:200]!r}")
        held.append(_HeldObject(match[1], match[2], int(match[3])))
    return held


async def _patch_all(command: list[str], held: list[_HeldObject]) -> list[str]:
    """Patch the objects; returns the errors of those that failed."""
    failures: list[str] = []
    limit = trio.CapacityLimiter(_CONCURRENCY)

    async def patch(item: _HeldObject) -> None:
        path = f"/metadata/finalizers/{item.at}"
        change = [
            {"op": "test", "path": path, "value": FINALIZER_RECORD},
            {"op": "remove", "path": path},
        ]
        async with limit:
            _, error = await _kubectl(
                [
                    *command,
                    "patch",
                    _RESOURCE,
                    item.name,
                    f"--namespace={item.namespace}",
                    "--type=json",
                    f"--patch={json.dumps(change)}",
                ]
            )
        if error is not None and "(NotFound)" not in error:
            failures.append(f"{item.namespace}/{item.name}: {error}")

    async with trio.open_nursery() as nursery:
        for item in held:
            nursery.start_soon(patch, item)
    return failures


_LOG_LINE: Final = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d")
"""The beginning of a line of klog, the log of kubectl's libraries."""


async def _kubectl(command: list[str]) -> tuple[str, str | None]:
    """The output of kubectl; and the error, None without one."""
    try:
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout.decode(errors="replace"), None
    lines = done.stderr.decode(errors="replace").splitlines()
    # The error comes after the log, which can be long.
    message = " ".join([line for line in lines if not _LOG_LINE.match(line)] or lines)
    text = clipped(printable(" ".join(message.split())), 500)
    return "", text or f"it ended with exit code {done.returncode}"
