"""etcd-actions: every event is decoded, routed to its key's channel and handled.

The only reader that does all of the work, and the only one that may merge states of a key
when it is behind. Nothing is told to a run service, and so nothing is marked: marks are
writes, and would be measured with the watch. All that this benchmark knows of the library
is in this file.
"""

from __future__ import annotations

import trio

from etcd_actions import (
    NullRunService,
    Phase,
    TaskAction,
    open_etcd,
    open_processor,
)
from etcd_actions.follow import Handler
from etcd_actions.model import Summary
from etcd_actions.watch import Change
from scripts.bench.recorder import Recorder, Task, serve


class _Silence(NullRunService):
    def wants(self, phase: Phase, deleted: bool) -> bool:
        return False


def read(task: Task, recorder: Recorder) -> None:
    """Watch; or list, which is how a watch begins."""
    trio.run(_process, task, recorder)


async def _process(task: Task, recorder: Recorder) -> None:
    prefix, namespace, _ = task.prefix.rsplit("/", 2)
    recorder.opening()
    async with (
        open_etcd([task.target]) as etcd,
        open_processor(
            etcd, prefix=f"{prefix}/".encode(), namespace=namespace, run_service=_Silence()
        ) as processor,
    ):
        _count_handled(task, recorder)
        await processor.start_watching()
        recorder.watching.set()
        while True:
            await trio.sleep(0.5)
            recorder.notes = {"statistics": repr(processor.statistics())}


def _count_handled(task: Task, recorder: Recorder) -> None:
    """Count what the handler has handled: decoded, remembered, and told to subscribers."""
    handle = Handler.handle_task_action_event

    def listed(
        handler: Handler, change: Change, summary: Summary, previous: TaskAction | None = None
    ) -> None:
        handle(handler, change, summary, previous)
        recorder.listed()

    def watched(
        handler: Handler, change: Change, summary: Summary, previous: TaskAction | None = None
    ) -> None:
        handle(handler, change, summary, previous)
        recorder.event(change.key, change.mod_revision, change.value or b"")

    counted = listed if task.mode == "list" else watched
    setattr(Handler, handle.__name__, counted)


if __name__ == "__main__":
    serve(read)
