"""``etcd-actions delete``, and ``gc`` for runs: deletes runs with all their parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final

from etcd_actions.cli.backends import open_reader
from etcd_actions.cli.calls import OPERATIONS
from etcd_actions.cli.exit_codes import ExitCode, print_message
from etcd_actions.cli.formats.changes import Change, Changes, plural, size_text
from etcd_actions.cli.names import Name, find_complete_run
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.reader import Reader
from etcd_actions.cli.service_client import Unimplemented
from etcd_actions.errors import ConfigError, NotFound
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb

# Runs of one request.
_BATCH: Final = 50


class DeletedRuns:
    """Deletes runs, prints the result of each, and counts.

    Args:
        reader: Calls the method, of the service or in this process.
        changes: Prints the results.
        dry_run: Delete nothing, and print the parts that would be deleted.
        force: Abort a run that has not ended, and then delete it.
        reason: The reason of the abort.

    Attributes:
        totals: Number of runs by result, and of their removed parts by kind.
    """

    def __init__(
        self, reader: Reader, changes: Changes, *, dry_run: bool, force: bool, reason: str
    ) -> None:
        self.totals: Counter[str] = Counter()
        self._reader = reader
        self._changes = changes
        self._request = pb.DeleteRunsRequest(dry_run=dry_run, force=force, reason=reason)
        self._elsewhere: list[str] = []

    async def delete(self, runs: Sequence[Name]) -> None:
        """Delete runs, some at a time; raises the errors of a call."""
        left = list(runs)
        while left:
            request = pb.DeleteRunsRequest()
            request.CopyFrom(self._request)
            for run in left[:_BATCH]:
                request.runs.add(project=run.project, domain=run.domain, run=run.run)
            try:
                response = await self._reader.calls.unary(
                    OPERATIONS, "DeleteRuns", request, pb.DeleteRunsResponse
                )
            except Unimplemented:
                raise ConfigError(
                    "this service cannot delete runs: it is Flyte's, or an earlier version of "
                    "etcd-actions: leave out --service, and name its etcd with --endpoints"
                ) from None
            for each in response.runs:
                self._report(each)
            # The service stops early if a call takes long.
            left = left[max(1, len(response.runs)) :]

    def finish(self) -> None:
        """Print the totals, and the files that stay."""
        runs = self.totals["planned" if self._request.dry_run else "deleted"]
        would = "would delete" if self._request.dry_run else "deleted"
        kept = f"; kept {self.totals['kept']}" if self.totals["kept"] else ""
        failed = f"; could not delete {self.totals['failed']}" if self.totals["failed"] else ""
        self._changes.note(f"{would} {plural(runs, 'run')}: {_parts(self.totals)}{kept}{failed}")
        if self._elsewhere:
            print_message(
                f"the files of {plural(len(self._elsewhere), 'run')} stay, since they are not in "
                f"this blob store, as {self._elsewhere[0]}: name theirs with --blob-dir before "
                "their records are deleted"
            )

    def _report(self, deleted: pb.DeletedRun) -> None:
        run = deleted.run
        name = f"{run.project}/{run.domain}/{run.run}"
        dry_run = self._request.dry_run
        result = "planned" if dry_run and deleted.result == "deleted" else deleted.result
        change = Change(name=name, result=result, reason=deleted.reason)
        parts = Counter(
            {
                "actions": deleted.objects,
                "histories": deleted.histories,
                "files": deleted.blobs,
                "bytes": deleted.bytes,
                "file_bytes": deleted.blob_bytes,
                "aborted": deleted.aborted,
            }
        )
        change.parts = dict(parts)
        self.totals[result] += 1
        self.totals.update(parts)
        if deleted.files_elsewhere and deleted.result != "missing":
            self._elsewhere.append(deleted.files_elsewhere)
        if deleted.result == "failed":
            text = f"{'would' if dry_run else 'could'} not delete {name}: {deleted.reason}"
        elif deleted.result == "kept":
            text = f"{'would keep' if dry_run else 'kept'} {name}: {deleted.reason}"
        elif deleted.result == "missing":
            text = f"{name} does not exist any more"
        else:
            text = f"{'would delete' if dry_run else 'deleted'} {name}: {_parts(parts)}"
        self._changes.add(change, text)


async def delete_runs(
    common: CommonOptions,
    names: Sequence[str],
    *,
    dry_run: bool,
    force: bool,
    reason: str,
    output: str | None,
) -> int:
    """Delete the named runs; an unknown name does not delay the others."""
    changes = Changes(output)
    unknown = 0
    async with open_reader(common, files=True) as reader:
        runs: list[Name] = []
        for text in names:
            try:
                runs.append(await find_complete_run(reader.names, text))
            except NotFound as error:
                unknown += 1
                print_message(str(error))
        deleted = DeletedRuns(reader, changes, dry_run=dry_run, force=force, reason=reason)
        await deleted.delete(list(dict.fromkeys(runs)))
    if runs:
        deleted.finish()
    changes.finish(totals=dict(deleted.totals))
    if unknown or deleted.totals["missing"]:
        return ExitCode.NOT_FOUND
    stay = deleted.totals["kept"] + deleted.totals["failed"]
    return ExitCode.ACTION if stay and not dry_run else ExitCode.OK


def _parts(counts: Counter[str]) -> str:
    """The removed parts, as people read them."""
    words = [
        plural(counts["actions"], "action"),
        f"{counts['histories']} {'history' if counts['histories'] == 1 else 'histories'}",
        f"{plural(counts['files'], 'file')} ({size_text(counts['file_bytes'])})",
    ]
    aborted = f", aborted first: {counts['aborted']}" if counts["aborted"] else ""
    return f"{', '.join(words)}, {size_text(counts['bytes'])} in etcd{aborted}"
