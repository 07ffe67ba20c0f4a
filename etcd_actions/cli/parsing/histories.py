"""The flags of record, replay and release-finalizers."""

from __future__ import annotations

from functools import partial

import click

from etcd_actions.cli.flags import command
from etcd_actions.cli.number_types import RATE
from etcd_actions.cli.options import CommonOptions, with_settings
from etcd_actions.cli.parsing.run_async import run_async
from etcd_actions.config.settings import COMMON


@command(example="etcd-actions record changes.jsonl --until-synced")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--history",
    is_flag=True,
    help="Start at the oldest revision that etcd can still read, not at the newest.",
)
@click.option("--until-synced", is_flag=True, help="End once the state at the start is recorded.")
@click.option("--force", is_flag=True, help="Overwrite FILE.")
@with_settings(COMMON)
def record(
    common: CommonOptions, *, file: str, history: bool, until_synced: bool, force: bool
) -> int:
    """Record the actions' changes into a file.

    First the state, then SYNCED, then each change in the order of revisions, until a signal.
    With --history it records the state at the oldest revision, then all changes since; the
    history before etcd's compaction is lost, and the first states are marked as listed. FILE is a
    stream of msgpack maps, which replay writes back; - is standard output. The command waits for
    an unavailable etcd.
    """
    from etcd_actions.cli.commands.record import RecordSettings, record_file  # noqa: PLC0415

    settings = RecordSettings(history=history, until_synced=until_synced, force=force)
    return run_async(record_file, common, file, settings)


@command(example="etcd-actions replay changes.jsonl --rate 100")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True))
@click.option(
    "--rate",
    type=RATE,
    metavar="N",
    help="Events a second. [default: as fast as etcd accepts them]",
)
@with_settings(COMMON)
def replay(common: CommonOptions, *, file: str, rate: float | None) -> int:
    """Write a recorded history into etcd.

    It writes one change after another. FILE is a record, or has one JSON object a line: type (PUT
    or DELETE), key, and value in base64; - is standard input. Namespace and name of a key are
    written below --prefix; --namespace replaces the namespace. Leases are not written. A first
    signal stops after the current change. A truncated record is written up to its last complete
    entry, with a warning.
    """
    from etcd_actions.cli.commands.replay import replay_file  # noqa: PLC0415

    return run_async(replay_file, common, file, rate)


@command("release-finalizers", example="etcd-actions release-finalizers --namespace flyte")
@click.option("--namespace", metavar="NAME", help="The only namespace.")
@click.option("--context", metavar="NAME", help="This context of kubectl's configuration.")
@click.option("--dry-run", is_flag=True, help="Only print the actions that would be changed.")
def release_finalizers(*, namespace: str | None, context: str | None, dry_run: bool) -> int:
    """Have an API server remove our finalizer from its actions.

    It is for actions that an API server encrypts at rest: only the API server can change them, and
    with our finalizer they are never deleted. The command uses kubectl with your configuration,
    and changes nothing else. Set --finalizer=false first, so that new actions do not get it. Safe
    to run again.
    """
    from etcd_actions.cli.commands.release_finalizers import release_finalizers as release  # noqa: PLC0415

    return run_async(partial(release, namespace, context, dry_run=dry_run))
