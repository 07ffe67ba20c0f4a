"""What happened in etcd, as etcd tells it, without the code under test."""

import trio

from etcd_actions.etcd.api import Etcd, Event, KeyRange, WatchCreate


async def changes_since(etcd: Etcd, keys: KeyRange, revision: int) -> list[Event]:
    """All changes after ``revision`` to now, in order."""
    # Of all keys in the store, so that the last change of all shows that none is missing.
    newest = (await etcd.range(keys, count_only=True)).revision
    events: list[Event] = []
    last = revision
    with trio.fail_after(60):
        async with etcd.watch() as stream:
            stream.create(WatchCreate(1, KeyRange(b"\0", b"\xff"), revision + 1, prev_kv=True))
            while last < newest:
                for response in await stream.receive():
                    for event in response.events:
                        last = max(last, event.mod_revision)
                        events.append(event)
    return [event for event in events if event.key in keys and event.mod_revision <= newest]
