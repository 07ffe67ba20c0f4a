"""Our own process is killed around a refusal, its letter and the mark."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import trio

from etcd_actions import open_actions_client
from etcd_actions.codecs import json
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.model import Keyspace
from tests.support import oracle
from tests.support.crashing_letters import POINTS
from tests.support.etcd_server import EtcdServer
from tests.support.load import make_run

pytestmark = pytest.mark.faults

_ROOT = Path(__file__).parents[2]


async def run_processor(server: EtcdServer, prefix: bytes, when: str) -> int:
    """Run one in a process of its own; returns how that ended."""
    command = [sys.executable, "-m", "tests.support.crashing_letters"]
    done = await trio.run_process(
        [*command, server.endpoint, prefix.decode(), when], cwd=_ROOT, check=False
    )
    return done.returncode


async def marked_without_letter(etcd: Etcd, prefix: bytes) -> list[bytes]:
    """Endings whose mark was ever in etcd without a letter that has the ending, by history."""
    letters = Keyspace(prefix).letters + b"actions/"
    history = await oracle.read_history(etcd, KeyRange.of_prefix(prefix))
    written = await oracle.read_history(etcd, KeyRange.of_prefix(letters))
    ends: dict[bytes, int] = {}
    for entry in written:
        (name, what) = entry.key.removeprefix(letters).rsplit(b"/", 2)[:2]
        if what == b"record" and b'"phase":"SUCCEEDED"' in entry.value:
            ends.setdefault(prefix + name, entry.mod_revision)
    return [
        entry.key
        for entry in history
        if not entry.is_delete
        and json.decode(entry.value).is_recorded
        and not ends.get(entry.key, 2**63) < entry.mod_revision
    ]


@pytest.mark.parametrize("when", POINTS)
async def test_no_crash_leaves_a_mark_without_record_or_letter(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, when: str
) -> None:
    """The record is refused, the ending accepted; killed anywhere, and started again."""
    actions = make_run(prefix, "rx1", 2)
    for action in actions:
        await etcd.put(action.key, action.ended)
    with trio.fail_after(90):
        assert await run_processor(shared_etcd, prefix, when) == -signal.SIGKILL
        assert await marked_without_letter(etcd, prefix) == []
        assert await run_processor(shared_etcd, prefix, "never") == 0
        assert await marked_without_letter(etcd, prefix) == []
    async with open_actions_client(etcd, prefix=prefix) as client:
        letters = await client.dead_letters()
    assert sorted(letter.key for letter in letters) == sorted(action.key for action in actions)
    assert {letter.what for letter in letters} == {"record"}
