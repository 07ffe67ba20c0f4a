"""The command line as a whole: which commands there are, and how each way out ends.

The flags of a command are in :mod:`etcd_actions.cli.parsing`, and are imported when it is named.
"""

from __future__ import annotations

import os

import click

from etcd_actions import __version__
from etcd_actions.cli.commands.completion import check_completion_request
from etcd_actions.cli.exit_codes import ExitCode, report, say, was_interrupted
from etcd_actions.cli.first_signal import interrupted_code
from etcd_actions.cli.flags import EPILOG
from etcd_actions.cli.lazy_group import Home, LazyGroup
from etcd_actions.cli.log_output import configure_logs

_PROGRAM = "etcd-actions"
_PARSING = "etcd_actions.cli.parsing"
_HOMES = {
    "watch": Home(f"{_PARSING}.queries", "watch", "Show every change of the actions."),
    "list": Home(f"{_PARSING}.queries", "list_", "Show the actions that there are."),
    "get": Home(f"{_PARSING}.queries", "get", "Show actions in full."),
    "tree": Home(f"{_PARSING}.queries", "tree", "Show the actions of a run as a tree."),
    "doctor": Home(
        f"{_PARSING}.queries",
        "doctor",
        "Examine etcd, and say what is wrong and what to do about it.",
    ),
    "run": Home(f"{_PARSING}.run", "run", "Watch actions and mark each ending, until a signal."),
    "completion": Home(
        f"{_PARSING}.completion",
        "completion",
        "Print the script that completes this command in a shell.",
    ),
    "record": Home(f"{_PARSING}.histories", "record", "Record the actions' changes into a file."),
    "replay": Home(f"{_PARSING}.histories", "replay", "Write a recorded history into etcd."),
    "release-finalizers": Home(
        f"{_PARSING}.histories",
        "release_finalizers",
        "Have an API server take our finalizer away from its actions.",
    ),
    "enqueue": Home(f"{_PARSING}.mutations", "enqueue", "Create the action that FILE describes."),
    "abort": Home(f"{_PARSING}.mutations", "abort", "End an action and all below it as ABORTED."),
    "signal": Home(
        f"{_PARSING}.mutations", "signal", "Give a condition the VALUE that it waits for."
    ),
    "status": Home(
        f"{_PARSING}.mutations", "status", "Report that an action is in PHASE, as an executor does."
    ),
    "submit": Home(
        f"{_PARSING}.submit",
        "submit",
        "Run a task of a program that is written with Flyte's SDK.",
    ),
    "dead-letters": Home(
        f"{_PARSING}.dead_letters",
        "dead_letters",
        "See what the run service refused for good, and have it told again.",
    ),
    "config": Home(f"{_PARSING}.config", "config", "Look at the settings."),
}


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
    cls=LazyGroup,
    homes=_HOMES,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, message="etcd-actions %(version)s")
def commands() -> None:
    """Handle Flyte's TaskActions directly in etcd."""
