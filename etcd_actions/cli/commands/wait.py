"""``etcd-actions wait``: waits until a run or an action has a phase."""

from __future__ import annotations

import math
from collections.abc import Collection

import trio
from flyteidl2.workflow import run_definition_pb2 as runs_pb

from etcd_actions._internal.quoting import quoted
from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.following import follow
from etcd_actions.cli.formats.message_rows import error_of, phase_of
from etcd_actions.cli.names import find_action, parse_name, with_nearest
from etcd_actions.cli.options import CommonOptions
from etcd_actions.errors import ConfigError
from etcd_actions.model import SUCCESSES, TERMINAL, Phase


async def wait_for_phase(
    common: CommonOptions, text: str, condition: str, within: float | None
) -> int:
    """Wait, and print the outcome.

    Args:
        common: The settings.
        text: The name of a run or an action.
        condition: See :func:`phases_of`.
        within: Seconds; None for no limit.
    """
    phases = phases_of(condition)
    parse_name(text)
    seen: list[runs_pb.ActionDetails] = []

    def on_item(details: runs_pb.ActionDetails) -> bool:
        seen[:] = [details]
        phase = phase_of(details.status.phase)
        return phase in phases or phase.is_terminal

    with trio.move_on_after(math.inf if within is None else within) as scope:
        async with open_reader(common) as reader:
            name = await find_action(reader.names, text)
            async with with_nearest(reader.names, text):
                await follow(name.path, lambda: reader.watch_action(name), on_item)
    phase = phase_of(seen[0].status.phase) if seen else None
    if scope.cancelled_caught:
        state = "was not read" if phase is None else f"is {phase.name}"
        print_message(f"{text}: it {state} after {within:g} s: --timeout")
        return ExitCode.TIMEOUT
    assert phase is not None
    error = error_of(seen[0])
    reason = f": {error.code}: {error.message}" if error is not None else ""
    print_message(f"{name.path} is {phase.name}{reason}")
    return ExitCode.OK if phase in phases else ExitCode.RUN_FAILED


def phases_of(condition: str) -> Collection[Phase]:
    """Parse ``PHASE[,PHASE...]``, ``phase=PHASE[,PHASE...]``, ``success`` or ``terminal``.

    Raises:
        ConfigError: It has none of these forms.
    """
    if condition == "success":
        return SUCCESSES
    if condition == "terminal":
        return TERMINAL
    names = condition.removeprefix("phase=")
    phases = {name.strip().upper() for name in names.split(",")}
    known = {phase.name for phase in Phase if phase}
    if not phases <= known:
        raise ConfigError(
            f"--for {quoted(condition)}: give success, terminal, or one or several of "
            f"{', '.join(phase.name for phase in Phase if phase)}"
        )
    return {Phase[name] for name in phases}
