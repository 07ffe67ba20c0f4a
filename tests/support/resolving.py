"""A client that finds etcd by a name, in a process of its own.

``python -m tests.support.resolving ENDPOINT TRANSPORT`` writes whenever it is sent a line, and
says what came of it: ``ok``, or the error's name.
"""

from __future__ import annotations

import sys

import trio

from etcd_actions import open_etcd
from etcd_actions.errors import EtcdError
from etcd_actions.etcd.connection_settings import TransportName


async def main(endpoint: str, transport: TransportName) -> None:
    """See above; ends with an exception where anything but an EtcdError comes up."""
    async with open_etcd(
        endpoint, transport=transport, request_timeout=2, dial_timeout=0.5
    ) as etcd:
        while await trio.to_thread.run_sync(sys.stdin.readline):
            try:
                await etcd.put(b"/resolving", b"")
            except EtcdError as error:
                print(type(error).__name__, flush=True)
            else:
                print("ok", flush=True)


if __name__ == "__main__":
    name: TransportName = "gateway" if sys.argv[2] == "gateway" else "grpc"
    trio.run(main, sys.argv[1], name)
