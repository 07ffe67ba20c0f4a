"""etcd-actions to its subscriber: a client that watches, and a reader of one root's children.

Public interface only. The stamp of a put is the action's short name, which an update carries.
"""

from __future__ import annotations

import trio

from etcd_actions import ActionId, ActionUpdate, WatchingSettings, open_actions_client, open_etcd
from scripts.bench.bodies import DOMAIN, PARENT, PROJECT
from scripts.bench.reader_etcd_actions import Silence
from scripts.bench.recorder import Recorder, Task, serve


def read(task: Task, recorder: Recorder) -> None:
    """Watch, and count what the subscriber receives."""
    trio.run(_subscribe, task, recorder)


async def _subscribe(task: Task, recorder: Recorder) -> None:
    prefix, namespace, _ = task.prefix.rsplit("/", 2)
    root = ActionId(PROJECT, DOMAIN, task.run, PARENT)
    recorder.opening()
    async with (
        open_etcd([task.target]) as etcd,
        open_actions_client(
            etcd,
            prefix=f"{prefix}/".encode(),
            namespace=namespace,
            run_service=Silence(),
            settings=WatchingSettings(collect_orphans=False),
        ) as client,
    ):
        await client.start_watching()
        async with client.subscribe(root) as updates:
            recorder.watching.set()
            async for update in updates:
                if isinstance(update, ActionUpdate):
                    sent = int(update.short_name)
                    recorder.event_sent_at(update.key, update.revision, sent)


if __name__ == "__main__":
    serve(read)
