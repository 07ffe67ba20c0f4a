"""``etcd-actions release-finalizers``: has an API server take our finalizer away.

Values that an API server encrypts at rest only it can change. So this asks it, by ``kubectl``,
with the configuration and the permissions of who calls. Each patch tests that the finalizer is
where the list had it, so a change of somebody else's is never undone: what was changed meanwhile
is listed again.
"""

from __future__ import annotations

import json
import re
import shutil
from typing import Final, NamedTuple

import trio

from etcd_actions._internal.quoting import clipped, printable
from etcd_actions.cli.exit_codes import ExitCode, say
from etcd_actions.errors import ConfigError, ServiceRefused
from etcd_actions.model import FINALIZER_RECORD

_RESOURCE: Final = "taskactions.flyte.org"
# A line for each of our finalizers: namespace, name, place in the list.
_TEMPLATE: Final = (
    "{{range .items}}{{$m := .metadata}}{{range $i, $f := $m.finalizers}}"
    '{{if eq $f "' + FINALIZER_RECORD + '"}}{{$m.namespace}} {{$m.name}} {{$i}}{{"\\n"}}{{end}}'
    "{{end}}{{end}}"
)
_LINE: Final = re.compile(r"([a-z0-9][-a-z0-9.]*) ([a-z0-9][-a-z0-9.]*) ([0-9]+)")
_SIDE_BY_SIDE: Final = 4
_ROUNDS: Final = 10


class _Held(NamedTuple):
    """An object that our finalizer holds, and where in its list that is."""

    namespace: str
    name: str
    at: int


async def release_finalizers(namespace: str | None, context: str | None, *, dry_run: bool) -> int:
    """Take our finalizer away from all TaskActions that an API server has.

    Args:
        namespace: Only from those in it.
        context: Which context of kubectl's configuration; None for the current one.
        dry_run: Only tell which hold it.

    Raises:
        ConfigError: There is no ``kubectl``.
        ServiceRefused: kubectl failed; what was done so far is done.
    """
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ConfigError("there is no kubectl on PATH: this asks an API server through it")
    command = [kubectl, *([] if context is None else [f"--context={context}"])]
    released, failure = 0, ""
    for _ in range(_ROUNDS):
        held = await _list(command, namespace)
        if dry_run:
            for one in held:
                print(f"{one.namespace}/{one.name}")
            say(f"{len(held)} actions hold {FINALIZER_RECORD}; nothing was changed")
            return ExitCode.OK
        if not held:
            say(f"took {FINALIZER_RECORD} away from {released} actions; none is left that holds it")
            return ExitCode.OK
        failures = await _patch_all(command, held)
        released += len(held) - len(failures)
        failure = failures[-1] if failures else ""
        if len(failures) == len(held):
            break
    raise ServiceRefused(
        f"took {FINALIZER_RECORD} away from {released} actions; others hold it still: {failure}"
    )


async def _list(command: list[str], namespace: str | None) -> list[_Held]:
    where = "--all-namespaces" if namespace is None else f"--namespace={namespace}"
    output, error = await _ask(
        [*command, "get", _RESOURCE, where, f"--output=go-template={_TEMPLATE}"]
    )
    if error is not None:
        raise ServiceRefused(f"kubectl get {_RESOURCE}: {error}")
    held = []
    for line in output.splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ServiceRefused(f"kubectl get {_RESOURCE} printed what is no name: {line[:200]!r}")
        held.append(_Held(match[1], match[2], int(match[3])))
    return held


async def _patch_all(command: list[str], held: list[_Held]) -> list[str]:
    """Patch some at a time; why those failed that did."""
    failures: list[str] = []
    limit = trio.CapacityLimiter(_SIDE_BY_SIDE)

    async def patch(one: _Held) -> None:
        path = f"/metadata/finalizers/{one.at}"
        change = [
            {"op": "test", "path": path, "value": FINALIZER_RECORD},
            {"op": "remove", "path": path},
        ]
        async with limit:
            _, error = await _ask(
                [
                    *command,
                    "patch",
                    _RESOURCE,
                    one.name,
                    f"--namespace={one.namespace}",
                    "--type=json",
                    f"--patch={json.dumps(change)}",
                ]
            )
        if error is not None and not _is_gone(error):
            failures.append(f"{one.namespace}/{one.name}: {error}")

    async with trio.open_nursery() as nursery:
        for one in held:
            nursery.start_soon(patch, one)
    return failures


def _is_gone(error: str) -> bool:
    return "(NotFound)" in error


_LOG_LINE: Final = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d")
"""The beginning of a line of klog, the log of kubectl's libraries."""


async def _ask(command: list[str]) -> tuple[str, str | None]:
    """What kubectl printed; and why it failed, None where it did not."""
    try:
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    except OSError as error:
        raise ConfigError(f"{command[0]} cannot be run: {error.strerror}") from None
    if done.returncode == 0:
        return done.stdout.decode(errors="replace"), None
    lines = done.stderr.decode(errors="replace").splitlines()
    # What it could not do stands behind its log, which can be long.
    said = " ".join([line for line in lines if not _LOG_LINE.match(line)] or lines)
    text = clipped(printable(" ".join(said.split())), 500)
    return "", text or f"it ended with exit code {done.returncode}"
