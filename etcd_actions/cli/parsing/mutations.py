"""The flags of enqueue, abort, signal and status, which change actions."""

from __future__ import annotations

import click

from etcd_actions.cli.choice_type import Choice
from etcd_actions.cli.flags import command
from etcd_actions.cli.number_types import COUNT
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import change_output_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import BACKEND
from etcd_actions.model import Phase


@command(example="etcd-actions enqueue root.json")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@change_output_option
@with_settings(BACKEND)
def enqueue(common: CommonOptions, *, file: str, output: str | None) -> int:
    """Create the action that FILE describes.

    FILE is a flyteidl2.actions.EnqueueRequest, or its Action alone, as protobuf's JSON or in
    binary; - is standard input. A repetition is not an error. With --service it uses
    the service, else etcd.
    """
    from etcd_actions.cli.commands.mutations import enqueue_file  # noqa: PLC0415

    return run_async(enqueue_file, common, file, output)


@command(example="etcd-actions abort r1 --reason 'wrong input' --by alice")
@click.argument("action", metavar="ACTION")
@click.option("--reason", metavar="TEXT", default="", help="Why.")
@click.option("--by", metavar="NAME", default="", help="The name of the person who aborts it.")
@change_output_option
@with_settings(BACKEND)
def abort(common: CommonOptions, *, action: str, reason: str, by: str, output: str | None) -> int:
    """End an action and all below it as ABORTED.

    ACTION is RUN/ACTION, the object's name (<run>-<action>), or
    <project>/<domain>/<run>/<action>; RUN alone is its root. A terminal action keeps its
    phase. Safe to run again.
    """
    from etcd_actions.cli.commands.mutations import abort_action  # noqa: PLC0415

    return run_async(abort_action, common, action, reason, by, output)


@command(example="etcd-actions signal r1/approve true --by alice")
@click.argument("action", metavar="ACTION")
@click.argument("value", metavar="VALUE")
@click.option(
    "--type",
    "kind",
    type=Choice(["auto", "bool", "int", "float", "str"]),
    default="auto",
    help="The type of VALUE. [default: inferred from VALUE]",
)
@click.option("--by", metavar="NAME", default="", help="The name of the person who signals it.")
@change_output_option
@with_settings(BACKEND)
def signal(
    common: CommonOptions, *, action: str, value: str, kind: str, by: str, output: str | None
) -> int:
    """Deliver VALUE to a condition that waits for it.

    ACTION is RUN/ACTION, the object's name (<run>-<action>), or
    <project>/<domain>/<run>/<action>; RUN alone is its root. A repetition is not an error.
    """
    from etcd_actions.cli.commands.mutations import signal_condition  # noqa: PLC0415

    return run_async(signal_condition, common, action, value, kind, by, output)


@command(
    example="etcd-actions status r1/train FAILED --error-code Killed --error-message 'no memory'"
)
@click.argument("action", metavar="ACTION")
@click.argument(
    "phase", metavar="PHASE", type=Choice([phase.name for phase in Phase], case_sensitive=False)
)
@click.option("--attempt", type=COUNT, metavar="N", default=1, show_default=True)
@click.option("--message", metavar="TEXT", default="", help="A line for people.")
@click.option("--error-code", metavar="CODE", default="", help="The code of the error.")
@click.option("--error-message", metavar="TEXT", default="", help="The message of the error.")
@click.option("--error-kind", type=Choice(["USER", "SYSTEM"]), default="USER", show_default=True)
@change_output_option
@with_settings(BACKEND)
def status(
    common: CommonOptions,
    *,
    action: str,
    phase: str,
    attempt: int,
    message: str,
    error_code: str,
    error_message: str,
    error_kind: str,
    output: str | None,
) -> int:
    """Report that an action is in PHASE, as an executor does.

    ACTION is RUN/ACTION, the object's name (<run>-<action>), or
    <project>/<domain>/<run>/<action>; RUN alone is its root. A repetition
    writes nothing; an earlier attempt, and a change of a terminal phase, are rejected.
    """
    from etcd_actions.cli.commands.mutations import report_status  # noqa: PLC0415
    from etcd_actions.model import ErrorState  # noqa: PLC0415

    error = None
    if error_code or error_message:
        error = ErrorState(code=error_code, kind=error_kind, message=error_message)
    return run_async(report_status, common, action, phase.upper(), attempt, message, error, output)
