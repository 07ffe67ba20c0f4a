"""What a recording holds, how it ends, and that its replay happens as it did."""

import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.cli.commands.record import Convergence, RecordSettings, record_file
from etcd_actions.errors import ConfigError, InputError, Unavailable
from etcd_actions.etcd.api import Etcd, Event, KeyRange, KeyValue
from etcd_actions.etcd.oldest_revision import find_oldest_revision
from etcd_actions.model import Keyspace
from etcd_actions.watch import Change, ChangeKind
from tests.cli.command import environment, finish, running
from tests.cli.here import here
from tests.cli.history import changes_since
from tests.data import captured
from tests.support.etcd_server import EtcdServer, free_port

HISTORY = captured.HERE / "taskaction_history.jsonl"
EVERYTHING = RecordSettings(history=True, until_synced=True)


def unpacked(data: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    header, *entries = unpacker
    return header, entries


def told(entries: list[dict[str, Any]], prefix: bytes) -> list[tuple[Any, ...]]:
    """Events, shortly: what happened to which key, and listed or not."""
    return [
        (entry["type"], entry["key"].removeprefix(prefix), entry["value"], entry["listed"])
        for entry in entries
        if entry["type"] in ("PUT", "DELETE")
    ]


async def recorded(
    etcd: Etcd, prefix: bytes, path: Path, settings: RecordSettings, **common: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    with trio.fail_after(60):
        assert await record_file(here(etcd, prefix, **common), str(path), settings) == 0
    return unpacked(path.read_bytes())


async def change_a_little(etcd: Etcd, prefix: bytes) -> int:
    """Two keys, one of which goes away; returns the last revision."""
    await etcd.put(prefix + b"n/a", b"1")
    await etcd.put(prefix + b"n/b", b"1")
    await etcd.put(prefix + b"m/a", b"1")
    await etcd.put(prefix + b"n/a", b"2")
    return (await etcd.delete(KeyRange.of_key(prefix + b"n/b"))).revision


A_LITTLE = [
    ("PUT", b"n/a", b"1", False),
    ("PUT", b"n/b", b"1", False),
    ("PUT", b"m/a", b"1", False),
    ("PUT", b"n/a", b"2", False),
    ("DELETE", b"n/b", None, False),
]


async def test_what_is_there(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    last = await change_a_little(etcd, prefix)
    lease = (await etcd.lease_grant(600)).id
    put = await etcd.put(prefix + b"n/c", b"", lease=lease)
    header, entries = await recorded(
        etcd, prefix, tmp_path / "x", RecordSettings(until_synced=True)
    )
    found = await etcd.range(KeyRange.of_prefix(prefix))
    assert header["prefix"] == prefix
    assert header["history"] is False
    assert header["start_revision"] == found.revision
    assert header["cluster_id"] == found.cluster_id
    assert told(entries, prefix) == [
        ("PUT", b"m/a", b"1", True),
        ("PUT", b"n/a", b"2", True),
        ("PUT", b"n/c", b"", True),
    ]
    for entry, kv in zip(entries, found.kvs, strict=False):
        assert entry["key"] == kv.key
        for name in ("mod_revision", "create_revision", "version", "lease"):
            assert entry[name] == getattr(kv, name)
    assert entries[2]["lease"] == lease
    assert entries[-2:] == [
        {"type": "SYNCED", "revision": put.revision},
        {"type": "END", "events": 3},
    ]
    assert last < put.revision


async def test_history(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    last = await change_a_little(etcd, prefix)
    header, entries = await recorded(etcd, prefix, tmp_path / "x", EVERYTHING)
    assert (header["start_revision"], header["history"]) == (1, True)
    assert told(entries, prefix) == A_LITTLE
    assert [entry["mod_revision"] for entry in entries[:5]] == list(range(last - 4, last + 1))
    assert [entry["version"] for entry in entries[:5]] == [1, 1, 1, 2, 0]
    assert entries[5:] == [{"type": "SYNCED", "revision": last}, {"type": "END", "events": 5}]


async def test_history_is_synced_where_it_has_come_to_the_start(
    etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    class Writing:
        """Writes once the start was looked at, before anything is listed."""

        def __getattr__(self, name: str) -> Any:
            return getattr(etcd, name)

        async def range(self, keys: KeyRange, *, limit: int = 0, **options: Any) -> Any:
            if limit:
                await etcd.put(prefix + b"n/late", b"x")
            return await etcd.range(keys, limit=limit, **options)

    last = await change_a_little(etcd, prefix)
    _, entries = await recorded(Writing(), prefix, tmp_path / "x", EVERYTHING)
    synced = [entry["type"] for entry in entries].index("SYNCED")
    # One response has all of it: what is in it comes before the mark.
    assert told(entries, prefix)[:5] == A_LITTLE
    assert entries[synced]["revision"] >= last
    assert all(entry["mod_revision"] <= entries[synced]["revision"] for entry in entries[:synced])


async def test_history_of_a_namespace(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    await change_a_little(etcd, prefix)
    header, entries = await recorded(etcd, prefix, tmp_path / "x", EVERYTHING, namespace="m")
    assert (header["prefix"], header["namespace"]) == (prefix, "m")
    assert told(entries, prefix) == [A_LITTLE[2]]


async def test_history_whose_last_change_is_not_the_stores(
    etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    await change_a_little(etcd, prefix)
    elsewhere = (await etcd.put(b"/elsewhere", b"x")).revision
    _, entries = await recorded(etcd, prefix, tmp_path / "x", EVERYTHING)
    assert told(entries, prefix) == A_LITTLE
    assert entries[5] == {"type": "SYNCED", "revision": elsewhere}


async def test_history_of_nothing(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    await etcd.put(b"/elsewhere", b"x")
    _, entries = await recorded(etcd, prefix, tmp_path / "x", EVERYTHING)
    assert [entry["type"] for entry in entries] == ["SYNCED", "END"]


async def test_history_that_was_compacted(
    own_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    async with open_etcd(own_etcd.endpoint) as etcd:
        assert await find_oldest_revision(etcd, KeyRange.of_prefix(prefix)) == 1
        last = await change_a_little(etcd, prefix)
        await etcd.compact(last - 1)
        assert await find_oldest_revision(etcd, KeyRange.of_prefix(prefix)) == last - 1
        header, entries = await recorded(etcd, prefix, tmp_path / "x", EVERYTHING)
        assert header["start_revision"] == last - 1
        # The state before the delete, then the delete: nothing older can be known.
        assert told(entries, prefix) == [
            ("PUT", b"m/a", b"1", True),
            ("PUT", b"n/a", b"2", True),
            ("PUT", b"n/b", b"1", True),
            ("DELETE", b"n/b", None, False),
        ]
        await etcd.compact(last)
        header, entries = await recorded(etcd, prefix, tmp_path / "y", EVERYTHING)
        assert header["start_revision"] == last
        assert told(entries, prefix) == [
            ("PUT", b"m/a", b"1", True),
            ("PUT", b"n/a", b"2", True),
        ]


async def test_history_compacted_while_it_is_listed(
    own_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    class Compacting:
        """Compacts once, before the first list."""

        def __init__(self, etcd: Etcd) -> None:
            self.etcd = etcd
            self.compact_at = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self.etcd, name)

        async def range(self, keys: KeyRange, *, limit: int = 0, **options: Any) -> Any:
            if limit and self.compact_at:
                at, self.compact_at = self.compact_at, 0
                await self.etcd.compact(at)
            return await self.etcd.range(keys, limit=limit, **options)

    async with open_etcd(own_etcd.endpoint) as etcd:
        last = await change_a_little(etcd, prefix)
        compacting = Compacting(etcd)
        compacting.compact_at = last - 1
        header, entries = await recorded(
            compacting,
            prefix,
            tmp_path / "x",
            EVERYTHING,
        )
    assert compacting.compact_at == 0
    assert header["start_revision"] == 1
    assert [each[1:] for each in told(entries, prefix)] == [
        (b"m/a", b"1", True),
        (b"n/a", b"2", True),
        (b"n/b", b"1", True),
        (b"n/b", None, False),
    ]


def change(key: bytes, revision: int, *, deleted: bool = False) -> Change:
    kind = ChangeKind.DELETED if deleted else ChangeKind.MODIFIED
    return Change(kind, KeyValue(key, b"", 1, revision, 0 if deleted else 1))


@pytest.mark.parametrize(
    ("state", "changes"),
    [
        ({}, []),
        ({b"a": 5}, [change(b"a", 5)]),
        ({b"a": 5}, [change(b"a", 3), change(b"a", 4, deleted=True), change(b"a", 5)]),
        ({b"a": 5}, [change(b"b", 3), change(b"a", 5), change(b"b", 6, deleted=True)]),
        # Overtaken: what is newer than the state leads to it as well.
        ({b"a": 5}, [change(b"a", 9)]),
        ({b"a": 5}, [change(b"a", 5), change(b"c", 11)]),
    ],
)
def test_an_approach_is_complete_with_its_last_change(
    state: dict[bytes, int], changes: list[Change]
) -> None:
    approach = Convergence(10, state)
    for index, each in enumerate(changes):
        assert not approach.complete or each.mod_revision > 10, index
        approach.apply([each])
    assert approach.complete


# --- the file -------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [b"/", b"/etcd-actions/", Keyspace(b"/x/").signing])
async def test_our_own_keys_are_never_recorded(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    """Those that sign URLs are among them."""
    with pytest.raises(ConfigError, match="sign URLs"):
        await recorded(etcd, prefix, tmp_path / "x", EVERYTHING)
    assert not (tmp_path / "x").exists()


async def test_a_file_that_exists_is_kept(etcd: Etcd, prefix: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("precious" * 1000)
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere" / "x")
    for existing in (path, dangling, tmp_path):
        with pytest.raises(InputError, match="exists already: give another name, or --force"):
            await recorded(etcd, prefix, existing, EVERYTHING)
    assert path.read_text() == "precious" * 1000
    force = RecordSettings(history=True, until_synced=True, force=True)
    header, _ = await recorded(etcd, prefix, path, force)
    assert header["prefix"] == prefix


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/dev/full", "No space left on device"),
        ("/nowhere/x", "No such file or directory"),
        ("/", "Is a directory"),
    ],
)
async def test_a_file_that_cannot_be_written(
    etcd: Etcd, prefix: bytes, path: str, reason: str
) -> None:
    if path == "/dev/full" and not Path(path).exists():
        pytest.skip("needs Linux's /dev/full")
    force = RecordSettings(until_synced=True, force=True)
    with pytest.RaisesGroup(
        pytest.RaisesExc(InputError, match=reason), allow_unwrapped=True, flatten_subgroups=True
    ):
        await record_file(here(etcd, prefix), path, force)


async def test_no_record_on_a_terminal(
    etcd: Etcd, prefix: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(ConfigError, match="a record is binary"):
        await record_file(here(etcd, prefix), "-", EVERYTHING)


async def test_no_file_without_an_etcd(prefix: bytes, tmp_path: Path) -> None:
    async with open_etcd(f"127.0.0.1:{free_port()}") as nobody:
        with pytest.RaisesGroup(Unavailable, allow_unwrapped=True, flatten_subgroups=True):
            await record_file(here(nobody, prefix), str(tmp_path / "x"), EVERYTHING)
    assert list(tmp_path.iterdir()) == []


# --- processes ------------------------------------------------------------------------


def happened(events: list[Event], prefix: bytes) -> list[tuple[bool, bytes, bytes]]:
    return [(each.is_delete, each.key.removeprefix(prefix), each.value) for each in events]


CAPTURED = [
    (event.type == "DELETE", event.key.split(b"taskactions/")[1], event.value)
    for event in captured.EVENTS
]


def flags(server: EtcdServer, prefix: bytes) -> tuple[str, ...]:
    return ("--endpoints", server.endpoint, "--prefix", prefix.decode())


async def in_process(*arguments: str | Path) -> str:
    """Run a command to its end, without a complaint, and return what it prints."""
    done = await trio.to_thread.run_sync(partial(finish, *arguments, "--log-level", "error"))
    assert (done.code, done.err) == (0, "")
    return done.out


@pytest.mark.slow
async def test_a_past_history_happens_again_in_another_store(
    shared_etcd: EtcdServer, own_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    await in_process("replay", HISTORY, *flags(shared_etcd, prefix))
    path = tmp_path / "past.rec"
    recording = ("record", path, "--history", "--until-synced")
    assert await in_process(*recording, *flags(shared_etcd, prefix)) == ""
    assert "replayed 88 events (85 puts, 3 deletes)" in await in_process(
        "replay", path, *flags(own_etcd, b"/again/")
    )
    async with open_etcd(own_etcd.endpoint) as other:
        again = await changes_since(other, KeyRange.of_prefix(b"/again/"), 1)
    assert happened(again, b"/again/") == CAPTURED
    before = await changes_since(etcd, KeyRange.of_prefix(prefix), 1)
    assert [each.version for each in again] == [each.version for each in before]


@pytest.mark.slow
async def test_a_history_happens_again_that_is_recorded_live(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "live.rec"
    start = (await etcd.range(KeyRange.of_prefix(prefix))).revision
    with running(tmp_path, "record", path, *flags(shared_etcd, prefix)) as record:
        await record.until(lambda: path.exists() and b"SYNCED" in path.read_bytes())
        await in_process("replay", HISTORY, *flags(shared_etcd, prefix))
        await record.until(lambda: path.read_bytes().count(b"crc32") == len(CAPTURED))
        record.signal(signal.SIGTERM)
        assert await record.wait() == 0
        [summary] = record.logs("recorded")
    assert (summary["puts"], summary["deletes"]) == (85, 3)
    happening = await changes_since(etcd, KeyRange.of_prefix(prefix), start)
    _, [synced, *entries, end] = unpacked(path.read_bytes())
    assert synced["type"] == "SYNCED"
    assert end == {"type": "END", "events": len(CAPTURED)}
    assert [(each["mod_revision"], each["version"], each["listed"]) for each in entries] == [
        (each.mod_revision, each.version, False) for each in happening
    ]

    elsewhere = prefix + b"again/"
    await in_process("replay", path, *flags(shared_etcd, elsewhere))
    again = await changes_since(etcd, KeyRange.of_prefix(elsewhere), start)
    assert happened(again, elsewhere) == happened(happening, prefix) == CAPTURED


@pytest.mark.faults
async def test_a_killed_recorder_leaves_what_it_saw(
    shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "killed.rec"
    start = (await etcd.range(KeyRange.of_prefix(prefix))).revision
    # So often that its replay outlives the recorder.
    history = tmp_path / "history.jsonl"
    history.write_text(HISTORY.read_text() * 20)
    slowly = ("--rate", "100", *flags(shared_etcd, prefix))
    with running(tmp_path, "record", path, *flags(shared_etcd, prefix)) as record:
        await record.until(lambda: path.exists() and b"SYNCED" in path.read_bytes())
        with running(tmp_path, "replay", history, *slowly) as replay:
            await record.until(lambda: path.read_bytes().count(b"crc32") > 20)
            record.signal(signal.SIGKILL)
            await record.wait()
            replay.signal(signal.SIGTERM)
            assert await replay.wait() == 0
    _, entries = unpacked(path.read_bytes())
    count = sum(entry["type"] in ("PUT", "DELETE") for entry in entries)
    assert 20 < count < 20 * len(CAPTURED)
    # Half of the last one, as when it had been killed a moment earlier.
    path.write_bytes(path.read_bytes()[:-10])

    done = await trio.to_thread.run_sync(
        finish, "replay", path, *flags(shared_etcd, prefix + b"again/")
    )
    assert done.code == 0
    assert done.complaint.startswith(f"etcd-actions: {path}: truncated in the entry at offset ")
    assert done.out.startswith(f"replayed {count - 1} events ")
    assert start < int(done.out.rpartition(" ")[2])


async def shell(command: str, *arguments: str, **env: str) -> str:
    """Run a line of bash with `etcd-actions` in it, without a complaint."""
    script = f'set -o pipefail; etcd-actions() {{ "{sys.executable}" -m etcd_actions "$@"; }}\n'
    done = await trio.run_process(
        ["bash", "-c", script + command, "_", *arguments],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        env=environment(ETCD_ACTIONS_LOG_LEVEL="error", **env),
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode(errors="replace")


@pytest.mark.slow
async def test_pipes(shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes) -> None:
    last = await change_a_little(etcd, prefix)
    endpoint = {"ETCDCTL_ENDPOINTS": shared_etcd.endpoint}
    record = "etcd-actions record - --history --prefix $1"
    printed = await shell(
        f"{record} --until-synced | etcd-actions replay - --prefix $2",
        prefix.decode(),
        f"/again{prefix.decode()}",
        **endpoint,
    )
    assert printed.startswith("replayed 5 events (4 puts, 1 deletes) ")
    elsewhere = b"/again" + prefix
    again = await changes_since(etcd, KeyRange.of_prefix(elsewhere), last)
    assert [(each.key.removeprefix(elsewhere), each.value or None) for each in again] == [
        (key, value) for _, key, value, _ in A_LITTLE
    ]
    # It follows changes for ever, but nobody reads them.
    assert await shell(f"{record} | head -c 7", prefix.decode(), **endpoint)
