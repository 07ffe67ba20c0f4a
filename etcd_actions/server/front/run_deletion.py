"""Deletes runs for an operator: a method of our own, since Flyte's services have none."""

from __future__ import annotations

from contextlib import aclosing
from typing import Final

import trio

from etcd_actions.blobs import BlobStore, NoStore
from etcd_actions.client import ActionsClient
from etcd_actions.runs.deletion import REASON, Deletion, RunDeleter
from etcd_actions.server._pb import etcd_actions_operations_pb2 as pb
from etcd_actions.server.caller import CALLER
from etcd_actions.server.required import require_runs

MOST_RUNS: Final = 100
"""The most runs of a request."""
_WITHIN: Final = 15.0
"""Seconds after which no other run is started: the response has those before."""
_WAIT: Final = 8.0
"""Seconds for the leader to record the ends of aborted actions."""


class RunDeletion:
    """The method of the service that deletes runs.

    Args:
        client: Reads and changes the actions.
        blobs: The store of the runs' data.
    """

    descriptor = pb.DESCRIPTOR.services_by_name["Operations"]

    def __init__(self, client: ActionsClient, blobs: BlobStore | None) -> None:
        store = None if isinstance(blobs, NoStore) else blobs
        self._deleter = RunDeleter(client, store, wait=_WAIT)

    async def delete_runs(self, request: pb.DeleteRunsRequest) -> pb.DeleteRunsResponse:
        """Delete runs; a client repeats the request for runs that the response does not have."""
        runs = require_runs(request.runs, MOST_RUNS)
        response = pb.DeleteRunsResponse()
        until = trio.current_time() + _WITHIN
        deletions = self._deleter.delete(
            runs,
            dry_run=request.dry_run,
            force=request.force,
            reason=request.reason or REASON,
            by=CALLER.get().subject,
        )
        async with aclosing(deletions) as done:
            async for each in done:
                response.runs.append(_message(each))
                if trio.current_time() >= until:
                    break
        return response


def _message(deletion: Deletion) -> pb.DeletedRun:
    run, removed = deletion.run, deletion.removed
    return pb.DeletedRun(
        run=pb.RunName(project=run.project, domain=run.domain, run=run.run),
        result=deletion.result.value,
        reason=deletion.kept,
        histories=removed.histories,
        objects=removed.objects,
        blobs=removed.blobs,
        bytes=removed.bytes,
        blob_bytes=deletion.blob_bytes,
        aborted=deletion.aborted,
        files_elsewhere=deletion.files_elsewhere,
    )
