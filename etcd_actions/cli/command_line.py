"""The command line: its commands, and the exit code of each outcome.

The flags of a command are in :mod:`etcd_actions.cli.parsing`, imported when it is named.
"""

from __future__ import annotations

import os

import click

from etcd_actions import __version__
from etcd_actions.cli.commands.completion import check_completion_request
from etcd_actions.cli.exit_codes import ExitCode, print_message, report, was_interrupted
from etcd_actions.cli.first_signal import interrupted_code
from etcd_actions.cli.flags import EPILOG
from etcd_actions.cli.lazy_group import LazyGroup
from etcd_actions.cli.log_output import configure_logs

_PROGRAM = "etcd-actions"
# The module in parsing, and the first sentence of the command's docstring.
_COMMANDS = {
    "watch": ("queries", "Show every change of the actions."),
    "list": ("queries", "Show the existing actions."),
    "get": ("queries", "Show actions in full."),
    "tree": ("queries", "Show the actions of a run as a tree."),
    "report": ("report", "Write the page of a run into an HTML file that opens without a server."),
    "runs": ("reading", "Show the runs, the newest first."),
    "describe": (
        "reading",
        "Describe runs or actions: events, attempts, errors, logs.",
    ),
    "wait": ("reading", "Wait until a run or an action has a phase."),
    "attach": ("reading", "Follow a run to its end, as submit does."),
    "top": ("reading", "Show the state of runs, executors and the cluster, live."),
    "doctor": ("queries", "Examine etcd, and show problems and their remedies."),
    "run": ("run", "Watch actions and mark each terminal one, until a signal."),
    "worker": ("worker", "Run actions, here or on Ray, next to other workers, until a signal."),
    "completion": ("completion", "Print the script that completes this command in a shell."),
    "record": ("histories", "Record the actions' changes into a file."),
    "replay": ("histories", "Write a recorded history into etcd."),
    "release-finalizers": (
        "histories",
        "Have an API server remove our finalizer from its actions.",
    ),
    "enqueue": ("mutations", "Create the action that FILE describes."),
    "abort": ("mutations", "End an action and all below it as ABORTED."),
    "signal": ("mutations", "Deliver VALUE to a condition that waits for it."),
    "status": ("mutations", "Report that an action is in PHASE, as an executor does."),
    "submit": ("submit", "Run a task of a program that is written with Flyte's SDK."),
    "dead-letters": (
        "dead_letters",
        "Show the reports that the run service rejected for good, and retry them.",
    ),
    "shards": ("shards", "Show the shards of the processes that share the work."),
    "logs": ("data", "Write the log of an action's attempt, the output of its process."),
    "io": ("data", "Show the inputs and outputs of an action as values."),
    "delete": ("deletion", "Delete runs: their actions, histories, files and records."),
    "gc": ("deletion", "Delete old runs, attempts or uploads; by default runs."),
    "config": ("config", "Show the settings."),
    "version": (
        "version",
        "Show the versions of this program, of etcd, and of the parts that it uses.",
    ),
    "help": ("help", "Show the help of a command; without one, the list of commands."),
}


def invoke() -> int:
    """Run the command of ``sys.argv``, and return the exit code."""
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
        print_message(f"{message}{'' if message.endswith(('.', '?')) else '.'} See {path} --help")
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
    cls=LazyGroup,
    locations=_COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="etcd-actions %(version)s")
def commands() -> None:
    """Handle Flyte's TaskActions directly in etcd."""
