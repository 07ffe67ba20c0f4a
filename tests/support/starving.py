"""A client in a process of its own that may open no more files, for a while.

``python -m tests.support.starving ENDPOINT TRANSPORT`` writes once, says ``ready``, and waits
for a line. Then it writes a few times while it may open nothing, says the errors' names, and
writes on until that succeeds again.
"""

from __future__ import annotations

import os
import resource
import sys

import trio

from etcd_actions import open_etcd
from etcd_actions.errors import EtcdError
from etcd_actions.etcd.connection_settings import TransportName
from tests.support.patient import patiently


async def main(endpoint: str, transport: TransportName) -> None:
    """See above; ends with an exception where anything but an EtcdError comes up."""
    async with open_etcd(endpoint, transport=transport, request_timeout=1) as etcd:
        await patiently(etcd.put, b"/starving", b"")
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        usual = resource.getrlimit(resource.RLIMIT_NOFILE)
        # The next one to be opened would be this.
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, usual[1]))
        for _ in range(5):
            try:
                await etcd.put(b"/starving", b"")
            except EtcdError as error:
                print(type(error).__name__, flush=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)
        with trio.fail_after(30):
            await patiently(etcd.put, b"/starving", b"")
        print("recovered", flush=True)


if __name__ == "__main__":
    name: TransportName = "gateway" if sys.argv[2] == "gateway" else "grpc"
    trio.run(main, sys.argv[1], name)
