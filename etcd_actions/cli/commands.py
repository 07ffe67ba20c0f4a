"""The commands and their flags; what they do is imported when it is asked for."""

from __future__ import annotations

import click
import trio

from etcd_actions import __version__
from etcd_actions.cli.exits import MEANINGS, ExitCode, report, say, was_interrupted
from etcd_actions.cli.logs import configure_logs
from etcd_actions.cli.options import Common, common_options

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:<9} {text}" for code, text in MEANINGS)


def invoke() -> int:
    """Run the command that ``sys.argv`` asks for, and return the exit code."""
    configure_logs()
    try:
        code = commands.main(prog_name="etcd-actions", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        return ExitCode.USAGE
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        path = context.command_path if context else "etcd-actions"
        message = error.format_message()
        say(f"{message}{'' if message.endswith(('.', '?')) else '.'} See {path} --help")
        return ExitCode.USAGE
    except click.Abort:
        return 130
    except BaseException as error:
        if was_interrupted(error):
            return 130
        if not isinstance(error, (Exception, ExceptionGroup)):
            raise
        return report(error)
    return code if isinstance(code, int) else ExitCode.OK


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="etcd-actions %(version)s")
def commands() -> None:
    """Handle Flyte's TaskActions directly in etcd."""


@commands.command(epilog=_EPILOG)
@click.option(
    "--embedded-port",
    type=click.IntRange(0, 65535),
    default=2379,
    show_default=True,
    help="Where the embedded etcd listens; another port when this one is taken.",
)
@click.option(
    "--grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long stopping may take to finish the work at hand.",
)
@click.option(
    "--stats-interval",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How often statistics are logged; 0 for never.",
)
@common_options
def run(common: Common, *, embedded_port: int, grace: float, stats_interval: float) -> int:
    """Watch actions and mark each ending, until a signal.

    Without --endpoints or ETCDCTL_ENDPOINTS it starts an etcd of its own on this machine.
    An etcd that cannot be reached is waited for.
    """
    from etcd_actions.cli.run import RunSettings, run_until_signal  # noqa: PLC0415

    settings = RunSettings(embedded_port=embedded_port, grace=grace, stats_interval=stats_interval)
    return trio.run(run_until_signal, common, settings)


@commands.command(epilog=_EPILOG)
@click.option(
    "--output",
    type=click.Choice(["table", "jsonl"]),
    help="[default: table on a terminal, else jsonl]",
)
@click.option("--prev-kv", is_flag=True, help="Ask etcd for what a deleted key held.")
@common_options
def watch(common: Common, *, output: str | None, prev_kv: bool) -> int:
    """Show every change of the actions.

    First what is there, then SYNCED, then what changes, until a signal. Without --endpoints or
    ETCDCTL_ENDPOINTS it looks at the running embedded etcd, else at 127.0.0.1:2379. An etcd
    that cannot be reached is waited for.
    """
    from etcd_actions.cli.watch import watch_until_signal  # noqa: PLC0415

    return trio.run(watch_until_signal, common, output, prev_kv)


@commands.command(epilog=_EPILOG)
@click.argument("file", metavar="FILE")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    metavar="N",
    help="Events a second. [default: as fast as etcd takes them]",
)
@common_options
def replay(common: Common, *, file: str, rate: float | None) -> int:
    """Write a recorded history into etcd.

    Change by change, in order. FILE has one JSON object a line: type (PUT or DELETE), key,
    and value in base64; - is standard input. The last two parts of a key, namespace and name,
    go below --prefix; --namespace replaces the namespace. A first signal stops after the
    change at hand.
    """
    from etcd_actions.cli.replay import replay_file  # noqa: PLC0415

    return trio.run(replay_file, common, file, rate)
