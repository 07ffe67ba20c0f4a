"""The flags of runs, describe, wait, attach and top, which read from etcd or the service."""

from __future__ import annotations

from functools import partial
from typing import Any

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.number_types import COUNT, SECONDS
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.output_options import FORMATS, output_option
from etcd_actions.cli.parsing.filters import label_option, parse_labels, phase_option
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import BACKEND


@command(example="etcd-actions runs --phase FAILED --newer-than 24h -l team=ml")
@click.option("--project", metavar="NAME", help="Only this project.")
@click.option("--domain", metavar="NAME", help="Only this domain.")
@phase_option("runs")
@label_option("Only runs with this label; may be given several times.")
@click.option(
    "--newer-than", type=SECONDS, metavar="DURATION", help="Only runs created within this time."
)
@click.option(
    "--older-than", type=SECONDS, metavar="DURATION", help="Only runs created before that time."
)
@click.option(
    "--sort-by",
    metavar="[-]FIELD",
    default="-created",
    show_default=True,
    help="created, started, ended, updated, duration, phase, run, project, domain, task or by; "
    "with - before it descending.",
)
@click.option(
    "--limit", type=COUNT, metavar="N", default=100, show_default=True, help="The most runs."
)
@click.option("--no-counts", is_flag=True, help="Do not count the actions of each run.")
@click.option("-w", "--watch", is_flag=True, help="Then show each run that changes or is new.")
@output_option(*FORMATS, elsewhere="jsonl")
@with_settings(BACKEND)
def runs(
    common: CommonOptions,
    *,
    phases: tuple[str, ...],
    labels: tuple[str, ...],
    sort_by: str,
    limit: int,
    no_counts: bool,
    watch: bool,
    output: str | None,
    **fields: Any,
) -> int:
    """Show the runs, the newest first.

    ACTIONS is the number of terminal actions and of all actions; it is empty once they have
    expired. A run of another run service has no record here: only list shows it.
    """
    from etcd_actions.cli.commands.runs import RunFilter, show_runs  # noqa: PLC0415

    selected = RunFilter(phases=phases, labels=parse_labels(labels), **fields)
    show = partial(show_runs, common, selected, sort_by=sort_by, limit=limit, output=output)
    return run_async(partial(show, counts=not no_counts, watch=watch))


@command(example="etcd-actions describe r1/train")
@click.argument("names", metavar="RUN[/ACTION]...", nargs=-1, required=True)
@output_option("table", "yaml", "json", "jsonl", elsewhere="table")
@with_settings(BACKEND)
def describe(common: CommonOptions, *, names: tuple[str, ...], output: str | None) -> int:
    """Describe runs or actions: events, attempts, errors, logs.

    Events are the phases of all attempts in the order of time. Errors have their tracebacks. A
    run is described by its root, with the labels of the run and its failed actions.
    """
    from etcd_actions.cli.commands.describe import describe_actions  # noqa: PLC0415

    return run_async(describe_actions, common, names, output)


@command(example="etcd-actions wait r1 --for phase=SUCCEEDED --timeout 10m")
@click.argument("name", metavar="RUN[/ACTION]")
@click.option(
    "--for",
    "condition",
    metavar="success|terminal|PHASE[,PHASE]",
    default="success",
    show_default=True,
    help="success is SUCCEEDED or RECOVERED, terminal any end.",
)
@click.option("--timeout", type=SECONDS, metavar="DURATION", help="The time limit. [default: none]")
@with_settings(BACKEND)
def wait(common: CommonOptions, *, name: str, condition: str, timeout: float | None) -> int:
    """Wait until a run or an action has a phase.

    It ends with 0 once it has, with 11 once it is terminal in another phase, and with 12 after
    --timeout.
    """
    from etcd_actions.cli.commands.wait import wait_for_phase  # noqa: PLC0415

    return run_async(wait_for_phase, common, name, condition, timeout)


@command(example="etcd-actions submit --detach hello.py:main --run r1 && etcd-actions attach r1")
@click.argument("run", metavar="RUN")
@output_option("table", "jsonl", elsewhere="jsonl")
@with_settings(BACKEND)
def attach(common: CommonOptions, *, run: str, output: str | None) -> int:
    """Follow a run to its end, as submit does.

    Each state of its actions is a line. It ends with the run: with 0 if the run succeeded, else
    with 11. A first Ctrl-C ends only attach; abort ends the run.
    """
    from etcd_actions.cli.commands.attach import attach_to_run  # noqa: PLC0415

    return run_async(attach_to_run, common, run, output)


@command(example="etcd-actions top --interval 5s")
@click.option(
    "--interval",
    type=SECONDS,
    metavar="DURATION",
    default="2s",
    show_default=True,
    help="The time between two frames.",
)
@click.option("--once", is_flag=True, help="Print one frame, also on a terminal.")
@output_option("table", "yaml", "json", "jsonl", elsewhere="table")
@with_settings(BACKEND)
def top(common: CommonOptions, *, interval: float, once: bool, output: str | None) -> int:
    """Show the state of runs, executors and the cluster, live.

    It shows runs by phase, rates, and the active runs with their actions. From etcd it shows
    members, the leader, actions by phase, terminal states to report, claims of executors and dead
    letters. From the service it shows the cluster as the page does: lag, queues, the local
    executor. Without a terminal it prints one frame and ends. Ctrl-C ends it.
    """
    from etcd_actions.cli.commands.top import show_top  # noqa: PLC0415

    return run_async(partial(show_top, common, interval=interval, once=once, output=output))
