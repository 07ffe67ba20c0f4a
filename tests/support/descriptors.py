"""A client that may open no more files, and later may again.

``python -m tests.support.descriptors ENDPOINT`` prints the error of a put, then ``ok`` for one with
room, then the same for a watch that was open all the time.
"""

from __future__ import annotations

import resource
import sys

import trio

from etcd_actions import open_etcd
from etcd_actions.errors import Unavailable
from etcd_actions.etcd.api import KeyRange, WatchCreate


async def client(endpoint: str) -> None:
    """Write without descriptors, and with."""
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with (
        open_etcd(endpoint) as watcher,
        open_etcd(endpoint) as etcd,
        watcher.watch() as stream,
    ):
        stream.create(WatchCreate(1, KeyRange.of_key(b"/descriptors"), 0))
        await stream.receive()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, usual[1]))
        for _ in range(3):
            try:
                await etcd.put(b"/descriptors", b"")
            except Unavailable as error:
                print(f"{type(error).__name__}: {error}", flush=True)
        # What is open goes on.
        await watcher.put(b"/descriptors", b"")
        while not any(response.events for response in await stream.receive()):
            continue
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        await etcd.put(b"/descriptors", b"")
        print("ok", flush=True)


if __name__ == "__main__":
    trio.run(client, sys.argv[1])
