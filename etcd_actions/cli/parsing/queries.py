"""The flags of what shows actions and etcd: watch, list, get, tree, doctor."""

from __future__ import annotations

from functools import partial

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.number_types import Count
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.cli.printing import output_option
from etcd_actions.config.settings import COMMON
from etcd_actions.model import Phase


@command()
@output_option("table", "jsonl", elsewhere="jsonl")
@click.option("--prev-kv", is_flag=True, help="Ask etcd for what a deleted key held.")
@with_settings(COMMON)
def watch(common: CommonOptions, *, output: str | None, prev_kv: bool) -> int:
    """Show every change of the actions.

    First what is there, then SYNCED, then what changes, until a signal. Without --endpoints or
    ETCDCTL_ENDPOINTS it looks at the running embedded etcd, else at 127.0.0.1:2379. An etcd
    that cannot be reached is waited for. jsonl has one object a line; what has no end is no one
    document, so there is no json.
    """
    from etcd_actions.cli.commands.watch import watch_until_signal  # noqa: PLC0415

    return run_async(watch_until_signal, common, output, prev_kv)


@command("list")
@click.option("--run", metavar="RUN", help="Only the actions of this run.")
@click.option("--project", metavar="NAME", help="Only this project.")
@click.option("--domain", metavar="NAME", help="Only this domain.")
@click.option(
    "--phase",
    "phases",
    multiple=True,
    type=click.Choice([phase.name for phase in Phase], case_sensitive=False),
    help="Only actions in this phase; may be given several times.",
)
@click.option("--parent", metavar="ACTION", help="Only children of this action.")
@click.option("--unrecorded", is_flag=True, help="Only what is not recorded.")
@click.option("--limit", type=Count(), metavar="N", help="At most so many.")
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@with_settings(COMMON)
def list_(
    common: CommonOptions,
    *,
    run: str | None,
    project: str | None,
    domain: str | None,
    phases: tuple[str, ...],
    parent: str | None,
    unrecorded: bool,
    limit: int | None,
    output: str | None,
) -> int:
    """Show the actions that there are.

    All at one revision, in the order of their keys, as they are read. With several flags
    those that fit all of them. jsonl has one object a line; json is one document, with the
    revision and the actions. A value that is no TaskAction is shown as such, or left out where
    there is a filter; stderr tells how many there are.
    """
    from etcd_actions.cli.commands.list_actions import Filter, list_actions  # noqa: PLC0415

    wanted = Filter(
        run=run,
        project=project,
        domain=domain,
        phases=frozenset(phases),
        parent=parent,
        unrecorded=unrecorded,
    )
    return run_async(partial(list_actions, common, wanted, output=output, limit=limit))


@command()
@click.argument("actions", metavar="ACTION...", nargs=-1, required=True)
@output_option("table", "jsonl", "json", elsewhere="json")
@with_settings(COMMON)
def get(common: CommonOptions, *, actions: tuple[str, ...], output: str | None) -> int:
    """Show actions in full.

    An ACTION is <namespace>/<name>, the object's name alone (<run>-a0), or
    <project>/<domain>/<run>/<action>. json is an object with the key, etcd's revisions and, in
    the field object, all that is stored, to the letter; of several ACTIONs an array of these.
    jsonl has one of them a line.
    """
    from etcd_actions.cli.commands.get import get_actions  # noqa: PLC0415

    return run_async(get_actions, common, actions, output)


@command()
@click.argument("run", metavar="RUN")
@output_option("table", "jsonl", "json", elsewhere="json")
@with_settings(COMMON)
def tree(common: CommonOptions, *, run: str, output: str | None) -> int:
    """Show the actions of a run as a tree.

    RUN is its name, or <project>/<domain>/<run>; runs of one name in several projects are told
    apart. TIME is how long an action took, or has been there. An action whose parent is gone
    stands below a mark for it. json is flat, since not every reader of JSON can nest as deep
    as actions can: the actions of a tree depth first, each with its depth. jsonl has one of
    these a line.
    """
    from etcd_actions.cli.commands.tree import show_tree  # noqa: PLC0415

    return run_async(show_tree, common, run, output)


@command()
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@with_settings(COMMON)
def doctor(common: CommonOptions, *, output: str | None) -> int:
    """Examine etcd, and say what is wrong and what to do about it.

    It looks at each endpoint and member by itself, at permissions, space, history, clocks and
    the stored values, changes nothing, and ends in bounded time. A finding has a severity (ok,
    note, warning, error), an id that stays the same, what was seen, what it means, and a
    remedy. The worst one gives the exit code: 0 for nothing worse than a note.
    """
    from etcd_actions.cli.commands.doctor import examine_etcd  # noqa: PLC0415

    return run_async(examine_etcd, common, output)
