"""Our own process is killed around the run service's acceptance; several run at once."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.codecs import json
from etcd_actions.etcd.api import (
    Compare,
    CompareResult,
    CompareTarget,
    Etcd,
    KeyRange,
    KeyValue,
    Put,
    Txn,
)
from etcd_actions.model import Keyspace
from tests.support import oracle
from tests.support.etcd_server import EtcdServer
from tests.support.load import make_action, make_run, with_annotation
from tests.support.recording import ACCEPTED, RecordingRunService
from tests.support.scene import all_marked, judge_marks, processing

pytestmark = pytest.mark.faults

_ROOT = Path(__file__).parents[2]


async def run_processor(server: EtcdServer, prefix: bytes, when: str) -> int:
    """Run one in a process of its own; returns how that ended."""
    command = [sys.executable, "-m", "tests.support.crashing"]
    done = await trio.run_process(
        [*command, server.endpoint, prefix.decode(), when],
        cwd=_ROOT,
        check=False,
        capture_stdout=True,
    )
    return done.returncode


async def accepted_at(etcd: Etcd, key: bytes) -> int:
    """The revision at which the run service accepted something of ``key``; 0 if never."""
    found = await etcd.range(KeyRange.of_key(ACCEPTED + key))
    return found.kvs[0].mod_revision if found.kvs else 0


@pytest.mark.parametrize("when", ["before", "between"])
async def test_a_crash_around_the_acceptance(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, when: str
) -> None:
    """Killed before or after the acceptance: no mark yet; the next start tells and marks."""
    actions = make_run(prefix, "rx1", 3)
    keys = KeyRange.of_prefix(prefix)
    for action in actions:
        await etcd.put(action.key, action.ended)
    with trio.fail_after(90):
        assert await run_processor(shared_etcd, prefix, when) == -signal.SIGKILL
        first = {action.key: await accepted_at(etcd, action.key) for action in actions}
        assert any(first.values()) == (when == "between")
        stored = {kv.key: kv for kv in (await etcd.range(keys)).kvs}
        for key, kv in stored.items():
            # Others may have been under way; none may be ahead of its acceptance.
            assert not json.decode(kv.value).is_recorded or kv.mod_revision > first[key] > 0
        unmarked = [key for key, kv in stored.items() if not json.decode(kv.value).is_recorded]
        assert unmarked
        assert await run_processor(shared_etcd, prefix, "never") == 0
        history = await oracle.read_history(etcd, keys)
    assert all_marked({entry.key: KeyValue(*_fields(entry)) for entry in history})
    for key in unmarked:
        again = await accepted_at(etcd, key)
        assert again > first[key]
        marks = [entry.mod_revision for entry in history if entry.key == key][1:]
        assert len(marks) == 1
        assert marks[0] > again


@pytest.mark.parametrize("when", ["before_mark", "after_mark"])
async def test_a_crash_at_the_mark_leaves_history_and_mark_or_neither(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, when: str
) -> None:
    """Our own run service stores the end with the mark; the next start does the rest."""
    actions = make_run(prefix, "rx2", 20)
    keys = Keyspace(prefix)

    async def stored() -> list[tuple[bool, int, int]]:
        found = []
        for action in actions:
            (kv,) = (await etcd.range(KeyRange.of_key(action.key))).kvs
            named = json.decode(kv.value)
            history = (await etcd.range(KeyRange.of_key(keys.history(named.action_id)))).kvs
            revision = history[0].mod_revision if history else 0
            found.append((named.is_recorded, kv.mod_revision, revision))
        return found

    for action in actions:
        await etcd.put(action.key, action.ended)
    with trio.fail_after(90):
        assert await run_processor(shared_etcd, prefix, when) == -signal.SIGKILL
        after_crash = await stored()
        for recorded, marked_at, kept_at in after_crash:
            assert kept_at == (marked_at if recorded else 0)
        assert any(recorded for recorded, *_ in after_crash) == (when == "after_mark")
        assert await run_processor(shared_etcd, prefix, "own_never") == 0
    assert all(recorded and at == kept_at for recorded, at, kept_at in await stored())


def _fields(entry: oracle.Entry) -> tuple[bytes, bytes, int, int, int]:
    return entry.key, entry.value, entry.create_revision, entry.mod_revision, entry.version


async def test_several_processors_and_an_editor_on_the_same_objects(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    """200 endings, three that mark, one that edits: one mark each, and every edit is kept."""
    actions = [make_action(prefix, f"rs{n:03}", "a1", like=n) for n in range(200)]
    for action in actions:
        await etcd.put(action.key, action.ended)
    edits = 3

    async def edit(key: bytes) -> None:
        for n in range(edits):
            applied = False
            while not applied:
                kv = (await etcd.range(KeyRange.of_key(key))).kvs[0]
                value = with_annotation(kv.value, f"edit-{n}", "kept")
                unchanged = Compare(
                    key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, kv.mod_revision
                )
                applied = (await etcd.txn(Txn([unchanged], [Put(key, value)]))).succeeded

    with trio.fail_after(120):
        async with (
            open_etcd(shared_etcd.endpoint) as one,
            open_etcd(shared_etcd.endpoint) as two,
            open_etcd(shared_etcd.endpoint) as three,
        ):
            run_services = [RecordingRunService(etcd) for _ in range(3)]
            async with (
                processing(one, prefix, run_services[0]) as first,
                processing(two, prefix, run_services[1]) as second,
                processing(three, prefix, run_services[2]) as third,
            ):
                processors = [first, second, third]
                async with trio.open_nursery() as nursery:
                    for action in actions:
                        nursery.start_soon(edit, action.key)
                history = await judge_marks(processors, run_services, etcd, prefix)
                marks = [processor.statistics().marks.get("marked", 0) for processor in processors]
    assert sum(marks) == len(actions)
    for entry in oracle.final_states(history).values():
        annotations = json.decode(entry.value).metadata.annotations
        assert [annotations.get(f"edit-{n}") for n in range(edits)] == ["kept"] * edits
