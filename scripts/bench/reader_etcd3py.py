"""etcd3-py as it comes: the iterator of its watcher."""

from __future__ import annotations

import etcd3

from scripts.bench.recorder import Recorder, Task, serve


def read(task: Task, recorder: Recorder) -> None:
    """Watch."""
    recorder.opening()
    client = etcd3.Client(task.host, task.port)
    watcher = client.Watcher(key=task.prefix, prefix=True, start_revision=task.revision)
    with watcher:
        recorder.watching.set()
        for event in watcher:
            recorder.event(event.key, int(event.mod_revision), event.value)


if __name__ == "__main__":
    serve(read)
