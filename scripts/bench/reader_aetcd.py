"""aetcd as it comes: the asynchronous iterator of a watch. It keeps no ``prev_kv``."""

from __future__ import annotations

import asyncio

import aetcd

from scripts.bench.recorder import Recorder, Task, serve


def read(task: Task, recorder: Recorder) -> None:
    """Watch."""
    asyncio.run(_watch(task, recorder))


async def _watch(task: Task, recorder: Recorder) -> None:
    recorder.opening()
    # gRPC's default of 4 MB ends a watch that has fallen behind.
    options = {"grpc.max_receive_message_length": -1, "grpc.enable_http_proxy": 0}
    async with aetcd.Client(task.host, task.port, options=options) as client:
        watch = await client.watch_prefix(task.prefix.encode(), start_revision=task.revision)
        recorder.watching.set()
        async for event in watch:
            recorder.event(event.kv.key, event.kv.mod_revision, event.kv.value)


if __name__ == "__main__":
    serve(read)
