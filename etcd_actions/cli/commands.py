"""The commands and their flags; what they do is imported when it is asked for."""

from __future__ import annotations

import os
from functools import partial

import click
import trio

from etcd_actions import __version__
from etcd_actions.cli.completion import SHELLS, check_completion_request, completion_script
from etcd_actions.cli.exits import MEANINGS, ExitCode, report, say, was_interrupted
from etcd_actions.cli.first_signal import interrupted_code
from etcd_actions.cli.flags import CommandGroup
from etcd_actions.cli.logs import configure_logs
from etcd_actions.cli.number_types import Count, Rate
from etcd_actions.cli.options import (
    Common,
    all_options,
    asking_options,
    common_options,
    run_options,
    submitting_options,
)
from etcd_actions.cli.output import output_by_print, output_option
from etcd_actions.config import Resolution
from etcd_actions.model import Phase

_PROGRAM = "etcd-actions"
_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<9} {text}" for code, text in MEANINGS)


def invoke() -> int:
    """Run the command that ``sys.argv`` asks for, and return the exit code."""
    configure_logs()
    try:
        check_completion_request(_PROGRAM, os.environ)
        code = commands.main(prog_name=_PROGRAM, standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        path = context.command_path if context else _PROGRAM
        message = error.format_message()
        say(f"{message}{'' if message.endswith(('.', '?')) else '.'} See {path} --help")
        return ExitCode.USAGE
    except click.Abort:
        return interrupted_code()
    except BaseException as error:
        if was_interrupted(error):
            return interrupted_code()
        if not isinstance(error, (Exception, ExceptionGroup)):
            raise
        return report(error)
    return code if isinstance(code, int) else ExitCode.OK


@click.group(
    cls=CommandGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="etcd-actions %(version)s")
def commands() -> None:
    """Handle Flyte's TaskActions directly in etcd."""


@commands.command(epilog=_EPILOG)
@run_options
def run(common: Common) -> int:
    """Watch actions and mark each ending, until a signal.

    Without --endpoints or ETCDCTL_ENDPOINTS it starts an etcd of its own on this machine.
    An etcd that cannot be reached is waited for.
    """
    from etcd_actions.cli.run import run_until_signal  # noqa: PLC0415

    return trio.run(run_until_signal, common)


@commands.command(epilog=_EPILOG)
@output_option("table", "jsonl", elsewhere="jsonl")
@click.option("--prev-kv", is_flag=True, help="Ask etcd for what a deleted key held.")
@common_options
def watch(common: Common, *, output: str | None, prev_kv: bool) -> int:
    """Show every change of the actions.

    First what is there, then SYNCED, then what changes, until a signal. Without --endpoints or
    ETCDCTL_ENDPOINTS it looks at the running embedded etcd, else at 127.0.0.1:2379. An etcd
    that cannot be reached is waited for. jsonl has one object a line; what has no end is no one
    document, so there is no json.
    """
    from etcd_actions.cli.watch import watch_until_signal  # noqa: PLC0415

    return trio.run(watch_until_signal, common, output, prev_kv)


@commands.command("list", epilog=_EPILOG)
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
@common_options
def list_(
    common: Common,
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
    from etcd_actions.cli.listing import Filter, list_actions  # noqa: PLC0415

    wanted = Filter(
        run=run,
        project=project,
        domain=domain,
        phases=frozenset(phases),
        parent=parent,
        unrecorded=unrecorded,
    )
    return trio.run(partial(list_actions, common, wanted, output=output, limit=limit))


@commands.command(epilog=_EPILOG)
@click.argument("actions", metavar="ACTION...", nargs=-1, required=True)
@output_option("table", "jsonl", "json", elsewhere="json")
@common_options
def get(common: Common, *, actions: tuple[str, ...], output: str | None) -> int:
    """Show actions in full.

    An ACTION is <namespace>/<name>, the object's name alone (<run>-a0), or
    <project>/<domain>/<run>/<action>. json is an object with the key, etcd's revisions and, in
    the field object, all that is stored, to the letter; of several ACTIONs an array of these.
    jsonl has one of them a line.
    """
    from etcd_actions.cli.get import get_actions  # noqa: PLC0415

    return trio.run(get_actions, common, actions, output)


@commands.command(epilog=_EPILOG)
@click.argument("run", metavar="RUN")
@output_option("table", "jsonl", "json", elsewhere="json")
@common_options
def tree(common: Common, *, run: str, output: str | None) -> int:
    """Show the actions of a run as a tree.

    RUN is its name, or <project>/<domain>/<run>; runs of one name in several projects are told
    apart. TIME is how long an action took, or has been there. An action whose parent is gone
    stands below a mark for it. json is flat, since not every reader of JSON can nest as deep
    as actions can: the actions of a tree depth first, each with its depth. jsonl has one of
    these a line.
    """
    from etcd_actions.cli.tree import show_tree  # noqa: PLC0415

    return trio.run(show_tree, common, run, output)


@commands.command(epilog=_EPILOG)
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@common_options
def doctor(common: Common, *, output: str | None) -> int:
    """Examine etcd, and say what is wrong and what to do about it.

    It looks at each endpoint and member by itself, at permissions, space, history, clocks and
    the stored values, changes nothing, and ends in bounded time. A finding has a severity (ok,
    note, warning, error), an id that stays the same, what was seen, what it means, and a
    remedy. The worst one gives the exit code: 0 for nothing worse than a note.
    """
    from etcd_actions.cli.doctor import examine_etcd  # noqa: PLC0415

    return trio.run(examine_etcd, common, output)


@commands.command("release-finalizers", epilog=_EPILOG)
@click.option("--namespace", metavar="NAME", help="Only this namespace.")
@click.option("--context", metavar="NAME", help="This context of kubectl's configuration.")
@click.option("--dry-run", is_flag=True, help="Only print what would be changed.")
def release_finalizers(*, namespace: str | None, context: str | None, dry_run: bool) -> int:
    """Have an API server take our finalizer away from its actions.

    For actions that an API server encrypts at rest, which only it can change: without this they
    are never deleted. It asks by kubectl, with your configuration, and leaves all else in the
    objects. Set --finalizer=false first, so that no more get it. What is being deleted goes
    with its last finalizer. Safe to run again.
    """
    from etcd_actions.cli.release_finalizers import release_finalizers as release  # noqa: PLC0415

    return trio.run(partial(release, namespace, context, dry_run=dry_run))


@commands.command(epilog=_EPILOG)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--history",
    is_flag=True,
    help="Begin with the oldest revision that etcd can still read, not with the newest.",
)
@click.option(
    "--until-synced", is_flag=True, help="End once what there was at the start is recorded."
)
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@common_options
def record(common: Common, *, file: str, history: bool, until_synced: bool, force: bool) -> int:
    """Record the actions' changes into a file.

    First what is there, then SYNCED, then each change in the order of revisions, until a
    signal. With --history it is what was there at the oldest revision, then all that happened
    since; where etcd compacted its history nothing older is left to record, and the states
    that it begins with are marked as listed. FILE is a stream of msgpack maps, which replay
    writes back; - is standard output. An etcd that goes away is waited for.
    """
    from etcd_actions.cli.record import RecordSettings, record_file  # noqa: PLC0415

    settings = RecordSettings(history=history, until_synced=until_synced, force=force)
    return trio.run(record_file, common, file, settings)


@commands.command(epilog=_EPILOG)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--rate",
    type=Rate(),
    metavar="N",
    help="Events a second. [default: as fast as etcd takes them]",
)
@common_options
def replay(common: Common, *, file: str, rate: float | None) -> int:
    """Write a recorded history into etcd.

    Change by change, in order. FILE is what record wrote, or has one JSON object a line: type
    (PUT or DELETE), key, and value in base64; - is standard input. Namespace and name of a key
    go below --prefix; --namespace replaces the namespace. Leases are not written. A first
    signal stops after the change at hand. A record whose end is missing is written as far as
    it goes, with a warning.
    """
    from etcd_actions.cli.replay import replay_file  # noqa: PLC0415

    return trio.run(replay_file, common, file, rate)


@commands.command(epilog=_EPILOG)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@asking_options
def enqueue(common: Common, *, file: str) -> int:
    """Create the action that FILE describes.

    FILE is a flyteidl2.actions.EnqueueRequest, or its Action alone, as protobuf's JSON or in
    binary; - is standard input. The same again is no error. With --service the
    service is asked, else etcd.
    """
    from etcd_actions.cli.changing import enqueue_file  # noqa: PLC0415

    return trio.run(enqueue_file, common, file)


@commands.command(epilog=_EPILOG)
@click.argument("action", metavar="ACTION")
@click.option("--reason", metavar="TEXT", default="", help="Why.")
@click.option("--by", metavar="NAME", default="", help="Who wants it.")
@asking_options
def abort(common: Common, *, action: str, reason: str, by: str) -> int:
    """End an action and all below it as ABORTED.

    ACTION is <project>/<domain>/<run>/<action>; the root of a run is called a0. What is over
    keeps its own ending. Safe to run again.
    """
    from etcd_actions.cli.changing import abort_action  # noqa: PLC0415

    return trio.run(abort_action, common, action, reason, by)


@commands.command(epilog=_EPILOG)
@click.argument("action", metavar="ACTION")
@click.argument("value", metavar="VALUE")
@click.option(
    "--type",
    "kind",
    type=click.Choice(["auto", "bool", "int", "float", "str"]),
    default="auto",
    help="Of which type VALUE is. [default: what it looks like]",
)
@click.option("--by", metavar="NAME", default="", help="Who gives it.")
@asking_options
def signal(common: Common, *, action: str, value: str, kind: str, by: str) -> int:
    """Give a condition the VALUE that it waits for.

    ACTION is <project>/<domain>/<run>/<action>. The same value again is no error.
    """
    from etcd_actions.cli.changing import signal_condition  # noqa: PLC0415

    return trio.run(signal_condition, common, action, value, kind, by)


@commands.command(epilog=_EPILOG)
@click.argument("action", metavar="ACTION")
@click.argument("phase", type=click.Choice([phase.name for phase in Phase], case_sensitive=False))
@click.option("--attempt", type=Count(), metavar="N", default=1, show_default=True)
@click.option("--message", metavar="TEXT", default="", help="A line for people.")
@click.option("--error-code", metavar="CODE", default="", help="Why it failed, in a word.")
@click.option("--error-message", metavar="TEXT", default="", help="Why it failed.")
@click.option(
    "--error-kind", type=click.Choice(["USER", "SYSTEM"]), default="USER", show_default=True
)
@asking_options
def status(
    common: Common,
    *,
    action: str,
    phase: str,
    attempt: int,
    message: str,
    error_code: str,
    error_message: str,
    error_kind: str,
) -> int:
    """Report that an action is in PHASE, as an executor does.

    ACTION is <project>/<domain>/<run>/<action>. The same again writes nothing; an earlier
    attempt, and a way out of an end, are refused.
    """
    from etcd_actions.cli.changing import report_status  # noqa: PLC0415
    from etcd_actions.model import ErrorState  # noqa: PLC0415

    error = None
    if error_code or error_message:
        error = ErrorState(code=error_code, kind=error_kind, message=error_message)
    return trio.run(report_status, common, action, phase.upper(), attempt, message, error)


@commands.command(epilog=_EPILOG)
@click.argument("target", metavar="FILE.py:TASK")
@click.option(
    "--input", "inputs", metavar="NAME=VALUE", multiple=True, help="An input of the task."
)
@click.option("--project", metavar="NAME", default="flytesnacks", show_default=True)
@click.option("--domain", metavar="NAME", default="development", show_default=True)
@click.option("--org", metavar="NAME", default="local", show_default=True)
@click.option("--run", metavar="NAME", help="What the run is called. [default: a new name]")
@click.option(
    "--root-dir",
    metavar="DIRECTORY",
    type=click.Path(exists=True, file_okay=False),
    help="Where the program's modules are found. [default: where FILE.py is]",
)
@click.option(
    "--output-base",
    metavar="DIRECTORY",
    type=click.Path(file_okay=False),
    help="Where outputs are kept; without --service inputs, too. [default: the store of blobs]",
)
@click.option("--detach", is_flag=True, help="Do not wait for the result.")
@output_option("table", "jsonl", elsewhere="jsonl")
@submitting_options
def submit(
    common: Common,
    *,
    target: str,
    inputs: tuple[str, ...],
    project: str,
    domain: str,
    org: str,
    run: str | None,
    root_dir: str | None,
    output_base: str | None,
    detach: bool,
    output: str | None,
) -> int:
    """Run a task of a program that is written with Flyte's SDK.

    The SDK, in the interpreter that --python names, converts the inputs and creates the run; an
    executor, such as that of run --executor local, runs it. Each change of a phase is shown,
    and the result at the end. VALUE is what flyte run takes: a text, a path of a file or a
    directory, or JSON. A first Ctrl-C leaves the run alone: abort ends it.
    """
    from etcd_actions.cli.submit import Submission, submit_program  # noqa: PLC0415

    submission = Submission(
        target=target,
        inputs=inputs,
        project=project,
        domain=domain,
        org=org,
        run=run,
        root_dir=root_dir,
        output_base=output_base,
        detach=detach,
    )
    return trio.run(submit_program, common, submission, output)


@commands.group("dead-letters", no_args_is_help=True)
def dead_letters() -> None:
    """See what the run service refused for good, and have it told again."""


@dead_letters.command("list", epilog=_EPILOG)
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@common_options
def list_dead_letters(common: Common, *, actions: tuple[str, ...], output: str | None) -> int:
    """Show what was refused, when, why, and whether the object is still there.

    The oldest first; without an ACTION all. ACTION is <namespace>/<name>, the object's name
    alone (<run>-a0), <project>/<domain>/<run>/<action>, or the whole key of a letter. What is
    no letter in their place is shown as such.
    """
    from etcd_actions.cli.dead_letters import list_letters  # noqa: PLC0415

    return trio.run(list_letters, common, actions, output)


@dead_letters.command("retry", epilog=_EPILOG)
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that there are.")
@click.option("--wait", is_flag=True, help="Wait for the answers, and say what they are.")
@click.option(
    "--timeout",
    type=Count(),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="With --wait: for so long.",
)
@common_options
def retry_dead_letters(
    common: Common, *, actions: tuple[str, ...], every: bool, wait: bool, timeout: int
) -> int:
    """Have actions told again: the record, then the status.

    The leader does it, in each action's own turn; where none runs the request stays.
    What is accepted is no dead letter any more. Safe to run again. ACTION is as for list.
    """
    from etcd_actions.cli.dead_letters import retry_letters  # noqa: PLC0415

    return trio.run(retry_letters, common, actions, every, wait, timeout)


@dead_letters.command("delete", epilog=_EPILOG)
@click.argument("actions", metavar="[ACTION...]", nargs=-1)
@click.option("--all", "every", is_flag=True, help="All that there are.")
@common_options
def delete_dead_letters(common: Common, *, actions: tuple[str, ...], every: bool) -> int:
    """Give up on dead letters: the run service goes without.

    ACTION is as for list. An ending that is not marked is told again by the next process that
    is elected, and may become a dead letter again.
    """
    from etcd_actions.cli.dead_letters import delete_letters  # noqa: PLC0415

    return trio.run(delete_letters, common, actions, every)


@commands.group(no_args_is_help=True)
def config() -> None:
    """Look at the settings."""


@config.command(epilog=_EPILOG)
@output_option("table", "jsonl", "json", elsewhere="jsonl")
@all_options
def show(values: Resolution, *, output: str | None) -> int:
    """Show each setting, its value, and where that comes from.

    Flags go before variables, and both before the defaults. Passwords are not shown. What is
    unusable is told on stderr, and ends with exit code 2.
    """
    from etcd_actions.cli.config_show import show_config  # noqa: PLC0415

    return show_config(values, output)


@commands.command(epilog=_EPILOG)
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    r"""Print the script that completes this command in a shell.

    \b
    bash:  source <(etcd-actions completion bash)
    zsh:   source <(etcd-actions completion zsh)
    fish:  etcd-actions completion fish | source
    """
    with output_by_print():
        click.echo(completion_script(commands, _PROGRAM, shell))
