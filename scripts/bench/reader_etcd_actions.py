"""etcd-actions to its handler: every event is decoded, remembered and handled.

It does all of the work, and may merge states of a key when it is behind. Nothing is reported to
a run service, and so nothing is marked: marks are writes, and would be measured with the watch.
The only name of the library here that is not public is the handler, which is counted.
"""

from __future__ import annotations

import trio

from etcd_actions import ActionObject, Phase, WatchingSettings, open_etcd
from etcd_actions.follow import Handler
from etcd_actions.model import Summary
from etcd_actions.pipeline.processor import open_processor
from etcd_actions.run_service import NullRunService
from etcd_actions.watch import Change
from scripts.bench.recorder import Recorder, Task, serve

_NEVER_SAVE = 3600.0
_SAVE_AT_ONCE = 0.1


class Silence(NullRunService):
    """A run service that wants to know nothing."""

    def accepts(self, phase: Phase, deleted: bool) -> bool:
        """Nothing."""
        return False


def read(task: Task, recorder: Recorder) -> None:
    """Watch; or list, which is how a watch begins."""
    trio.run(_process, task, recorder)


async def _process(task: Task, recorder: Recorder) -> None:
    prefix, namespace, _ = task.prefix.rsplit("/", 2)
    every = _SAVE_AT_ONCE if task.mode == "prepare" else _NEVER_SAVE
    recorder.opening()
    async with (
        open_etcd([task.target]) as etcd,
        open_processor(
            etcd,
            prefix=f"{prefix}/".encode(),
            namespace=namespace,
            run_service=Silence(),
            # The load has no roots: looking for them would be measured, too.
            settings=WatchingSettings(save_every=every, collect_orphans=False),
        ) as processor,
    ):
        _count_handled(task, recorder)
        await processor.start_watching()
        while task.mode == "prepare" and not processor.statistics().checkpoint:  # noqa: ASYNC110
            await trio.sleep(_SAVE_AT_ONCE)
        if task.mode != "prepare":
            recorder.watching.set()
            await trio.sleep_forever()
    recorder.watching.set()


def _count_handled(task: Task, recorder: Recorder) -> None:
    """Count what the handler has handled: decoded, noted, and delivered to subscribers."""
    handle = Handler.handle_task_action_event

    def counted(
        handler: Handler, change: Change, summary: Summary, previous: ActionObject | None = None
    ) -> None:
        handle(handler, change, summary, previous)
        if task.mode == "list" or change.mod_revision < task.revision:
            recorder.listed()
        else:
            recorder.event(change.key, change.mod_revision, change.value)

    setattr(Handler, handle.__name__, counted)


if __name__ == "__main__":
    serve(read)
