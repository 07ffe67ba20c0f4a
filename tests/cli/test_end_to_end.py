"""The three commands together on a real etcd, judged by etcd's own history."""

import json
import re
import signal
from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.etcd.api import Etcd, Event, KeyRange
from etcd_actions.model import ANNOTATION_RECORDED, DEFAULT_KEY_PREFIX
from etcd_actions.testing import OwnEtcd
from tests.cli.command import DEADLINE, Running, finish, running, until
from tests.cli.expected import expected
from tests.cli.history import changes_since
from tests.data import captured
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually_holds

HISTORY = captured.HERE / "taskaction_history.jsonl"
LABEL = "flyte.org/terminal-status-recorded"


def is_marked(value: bytes) -> bool:
    return bool(json.loads(value)["metadata"].get("labels", {}).get(LABEL) == "true")


def is_over(value: bytes) -> bool:
    conditions = json.loads(value).get("status", {}).get("conditions", [])
    return any(c["type"] in ("Succeeded", "Failed") and c["status"] == "True" for c in conditions)


def is_flytes_mark(event: captured.Event) -> bool:
    if event.type == "DELETE" or not event.previous:
        return False
    return is_marked(event.value) > is_marked(event.previous)


def is_a_mark(event: Event) -> bool:
    """Whether it adds label and annotation to what was there, and does nothing else."""
    assert event.prev_kv is not None
    before, after = json.loads(event.prev_kv.value), json.loads(event.value)
    marked = after["metadata"]["labels"].pop(LABEL, None) == "true"
    marked &= after["metadata"]["annotations"].pop(ANNOTATION_RECORDED, None) is not None
    if not after["metadata"]["annotations"]:
        del after["metadata"]["annotations"]
    return marked and before["metadata"]["labels"].get(LABEL) is None and before == after


def by_key(events: Iterable[Event]) -> dict[bytes, list[Event]]:
    keys: defaultdict[bytes, list[Event]] = defaultdict(list)
    for event in events:
        keys[event.key].append(event)
    return keys


@pytest.mark.parametrize(
    ("flyte_marks", "rate"),
    # At a rate the marks get between the changes; at full speed most changes overtake them.
    first_everyday(
        [
            pytest.param(True, "1000000", id="as_captured"),
            pytest.param(True, "150", id="as_captured_slowly"),
            pytest.param(False, "1000000", id="without_marks"),
        ]
    ),
)
async def test_captured_history_replayed_beside_run_and_watch(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path, flyte_marks: bool, rate: str
) -> None:
    lines = HISTORY.read_text().splitlines(keepends=True)
    events = captured.EVENTS
    if not flyte_marks:
        kept = [n for n, event in enumerate(events) if not is_flytes_mark(event)]
        assert len(events) - len(kept) == 9
        lines, events = [lines[n] for n in kept], [events[n] for n in kept]
    history = tmp_path / "history.jsonl"
    history.write_text("".join(lines))
    keys = KeyRange.of_prefix(prefix)
    start = (await etcd.range(keys, count_only=True)).revision
    common = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())

    async def all_is_marked() -> bool:
        left = (await etcd.range(keys)).kvs
        return not [kv.key for kv in left if is_over(kv.value) and not is_marked(kv.value)]

    with (
        # The history has the garbage collector's own deletions.
        running(tmp_path, "run", "--collect-orphans=false", *common) as run,
        running(tmp_path, "watch", "--output", "jsonl", *common) as watch,
    ):
        await run.logged("synced")
        assert await watch.row("SYNCED") == watch.rows()[0]
        replayed = await trio.to_thread.run_sync(
            finish, "replay", str(history), "--rate", rate, *common
        )
        assert (replayed.code, replayed.err) == (0, "")
        counts = re.match(r"replayed (\d+) events .*last revision (\d+)$", replayed.out)
        assert counts is not None
        assert int(counts[1]) == len(events)
        await eventually_holds(all_is_marked, within=DEADLINE)
        # Nothing is unmarked: no further mark can come, so stopping shows them all.
        run.signal(signal.SIGTERM)
        assert await run.wait() == 0
        happened = await changes_since(etcd, keys, start)
        await watch.until(lambda: len(watch.rows()) > len(happened))
        watch.signal(signal.SIGINT)
        assert await watch.wait() == 0
        rows = watch.rows()[1:]

    # etcd's history is the captured one, with marks in between.
    wanted: defaultdict[bytes, list[captured.Event]] = defaultdict(list)
    for captured_event in events:
        wanted[prefix + captured_event.key.removeprefix(DEFAULT_KEY_PREFIX)].append(captured_event)
    original: dict[int, captured.Event] = {}
    marks_after_last: dict[bytes, int] = {}
    marks = 0
    for key, changes in by_key(happened).items():
        queue = list(wanted.pop(key))
        marks_after_last[key] = 0
        for change in changes:
            is_next = queue and (change.is_delete, change.value) == (
                queue[0].type == "DELETE",
                queue[0].value,
            )
            if is_next:
                original[change.mod_revision] = queue.pop(0)
            else:
                assert is_a_mark(change), (key, change.mod_revision)
                marks += 1
                marks_after_last[key] += not queue
        assert not queue
    assert not wanted
    assert (await run.logged("stopped"))["marked"] == marks

    # What is over and left is marked; by us exactly once where nobody else did.
    left = {kv.key: kv for kv in (await etcd.range(keys)).kvs}
    over = {key for key, kv in left.items() if is_over(kv.value)}
    assert len(over) == 9
    assert all(is_marked(left[key].value) for key in over)
    assert all(count <= 1 for count in marks_after_last.values())
    if not flyte_marks:
        assert {key for key, count in marks_after_last.items() if count} == over

    # The watch showed each change of etcd's history, per key in order, as the API server would.
    assert len(rows) == len(happened)
    for key, changes in by_key(happened).items():
        seen = [row for row in rows if row["key"] == key.decode()]
        assert [row["revision"] for row in seen] == [change.mod_revision for change in changes]
        previous: dict[str, Any] = {}
        for change, row in zip(changes, seen, strict=True):
            source = original.get(change.mod_revision)
            if source is None:
                assert row == previous | {
                    "type": "MODIFIED",
                    "revision": change.mod_revision,
                    "recorded": True,
                }
            else:
                answer = expected(source)
                if source.type == "DELETE":
                    # We may have marked the end that the API server saw unmarked.
                    answer["recorded"] = previous["recorded"]
                assert {name: row[name] for name in answer} == answer
            previous = row


@pytest.mark.slow
async def test_namespace_and_value_that_cannot_be_read(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    common = (
        "--endpoints",
        shared_etcd.endpoint,
        "--prefix",
        prefix.decode().rstrip("/"),
        "--namespace",
        "mine",
    )
    await etcd.put(prefix + b"other/r-a0", captured.PUTS[0].value)
    await etcd.put(prefix + b"mine/bad-a0", b"rubbish")
    with (
        running(tmp_path, "watch", *common) as watch,
        running(tmp_path, "run", *common) as run,
    ):
        await watch.row("SYNCED")
        await run.logged("synced")
        replayed = await trio.to_thread.run_sync(
            finish, "replay", str(HISTORY), "--rate", "5000", *common
        )
        assert replayed.code == 0
        end = prefix.decode() + "mine/" + captured.EVENTS[-1].key.decode().rpartition("/")[2]
        await watch.until(
            lambda: [r for r in watch.rows() if (r["type"], r.get("key")) == ("DELETED", end)]
        )
        first, synced, *rows = watch.rows()
        assert first["type"] == "UNDECODABLE"
        assert first["key"] == prefix.decode() + "mine/bad-a0"
        assert synced["type"] == "SYNCED"
        assert {row["namespace"] for row in rows} == {"mine"}
        run.signal(signal.SIGTERM)
        assert await run.wait() == 0
        assert run.logs("stopped")[0]["decode_errors"] == 1
    stored = await etcd.range(KeyRange.of_prefix(prefix + b"mine/rh"))
    assert all(b'"namespace":"mine"' in kv.value for kv in stored.kvs)


@pytest.mark.faults
async def test_etcd_that_comes_later_and_goes_away(own_etcd: EtcdServer, tmp_path: Path) -> None:
    own_etcd.stop()
    common = ("--endpoints", own_etcd.endpoint)
    with running(tmp_path, "run", *common) as run, running(tmp_path, "watch", *common) as watch:
        await run.logged("watch_lost")
        await watch.logged("watch_lost")
        own_etcd.start()
        await run.logged("synced")
        await watch.row("SYNCED")
        seen = len(run.logs("watch_lost"))
        own_etcd.stop()
        await until(lambda: len(run.logs("watch_lost")) > seen)
        own_etcd.start()
        replayed = await trio.to_thread.run_sync(finish, "replay", str(HISTORY), *common)
        assert replayed.code == 0
        # Keys are watched side by side: the last deletion may come before the last addition.
        await watch.until(lambda: count_rows(watch, "DELETED") >= 3)
        await watch.until(lambda: count_rows(watch, "ADDED") >= 13)
        assert (count_rows(watch, "DELETED"), count_rows(watch, "ADDED")) == (3, 13)


def count_rows(watch: Running, kind: str) -> int:
    return len([row for row in watch.rows() if row["type"] == kind])


@pytest.mark.faults
async def test_outage_in_the_middle_of_a_replay(
    killable_etcd: EtcdServer, tmp_path: Path, prefix: bytes
) -> None:
    common = ("--endpoints", killable_etcd.endpoint, "--prefix", prefix.decode())
    with running(tmp_path, "watch", *common) as watch:
        await watch.row("SYNCED")
        with running(tmp_path, "replay", HISTORY, "--rate", "15", *common) as replay:
            await watch.until(lambda: len(watch.rows()) > 10)
            killable_etcd.kill()
            await replay.logged("etcd_away")
            killable_etcd.start()
            assert await replay.wait() == 0
        async with open_etcd(killable_etcd.endpoint) as etcd:
            happened = await changes_since(etcd, KeyRange.of_prefix(prefix), 1)
    assert [(e.is_delete, e.value) for e in happened] == [
        (e.type == "DELETE", e.value) for e in captured.EVENTS
    ]


@pytest.mark.slow
async def test_refusal_of_etcd(own_etcd: OwnEtcd, tmp_path: Path) -> None:
    for words in ("user add root:secret", "user grant-role root root", "auth enable"):
        own_etcd.etcdctl(*words.split())
    common = ("--endpoints", own_etcd.endpoint, "--log-level", "error")
    commands = (["run"], ["watch"], ["list"], ["record", "-"], ["replay", str(HISTORY)])
    for command in commands:
        done = await trio.to_thread.run_sync(partial(finish, *command, *common))
        assert done.code == 4, done.err
        assert "user" in done.complaint
