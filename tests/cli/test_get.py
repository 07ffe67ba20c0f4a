"""Which objects ``get`` finds, and that it shows all of them."""

import json
from typing import Any

import pytest

from etcd_actions.cli.commands.get import get_actions
from etcd_actions.errors import ConfigError
from etcd_actions.etcd.api import Etcd
from tests.cli.here import here, taskaction
from tests.data.captured import PUTS
from tests.support.everyday import first_everyday


async def put_some(etcd: Etcd, prefix: bytes) -> None:
    """The same run in two namespaces and projects, and one that cannot be read."""
    await etcd.put(prefix + b"flyte/r1-a0", taskaction("r1", "a0", None))
    await etcd.put(prefix + b"flyte/r1-a1", taskaction("r1", "a1"))
    await etcd.put(prefix + b"other/r1-a0", taskaction("r1", "r1", None, project="q"))
    await etcd.put(prefix + b"other/bad-a0", b"rubbish\n")


async def got(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes, *actions: str, **common: Any
) -> list[str]:
    """The keys behind the prefix that are found."""
    await get_actions(here(etcd, prefix, **common), actions, "jsonl")
    keys = [json.loads(line)["key"] for line in capfd.readouterr().out.splitlines()]
    return [key.removeprefix(prefix.decode()) for key in keys]


@pytest.mark.parametrize(
    ("action", "found"),
    first_everyday(
        [
            ("flyte/r1-a0", "flyte/r1-a0"),
            ("other/r1-a0", "other/r1-a0"),
            ("r1-a1", "flyte/r1-a1"),
            ("p/d/r1/a0", "flyte/r1-a0"),
            # The root may be called like its run, by either side.
            ("p/d/r1/r1", "flyte/r1-a0"),
            ("q/d/r1/a0", "other/r1-a0"),
            ("p/d/bad/a0", "other/bad-a0"),
            # A run is its root, in each form.
            ("p/d/r1", "flyte/r1-a0"),
            ("r1/a1", "flyte/r1-a1"),
            ("o/p/d/r1/a1", "flyte/r1-a1"),
            ("flyte/r1", ""),
            ("p/e/r1/a0", ""),
            ("nowhere/r1-a0", ""),
            ("r1-", ""),
        ],
        6,
    ),
)
async def test_names(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes, action: str, found: str
) -> None:
    await put_some(etcd, prefix)
    assert await got(capfd, etcd, prefix, action) == found.split()


async def test_namespace(capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes) -> None:
    await put_some(etcd, prefix)
    assert await got(capfd, etcd, prefix, "r1-a0", namespace="other") == ["other/r1-a0"]
    assert await got(capfd, etcd, prefix, "flyte/r1-a0", namespace="other") == []


async def test_a_name_in_two_namespaces(etcd: Etcd, prefix: bytes) -> None:
    await put_some(etcd, prefix)
    with pytest.raises(ConfigError, match="give one of p/d/r1/a0, q/d/r1/a0"):
        await get_actions(here(etcd, prefix), ["r1-a0"])


@pytest.mark.parametrize("text", ["", "a//c", "/a", "a/", "o/p/d/r/a/x"])
async def test_no_name(etcd: Etcd, prefix: bytes, text: str) -> None:
    with pytest.raises(ConfigError, match="is not an action"):
        await get_actions(here(etcd, prefix), [text])


async def test_what_is_missing_is_told_behind_what_is_there(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    await put_some(etcd, prefix)
    code = await get_actions(here(etcd, prefix), ["x-a0", "r1-a1", "flyte/y-a0"], "json")
    out, err = capfd.readouterr()
    assert code == 7
    assert [found["name"] for found in json.loads(out)] == ["r1-a1"]
    assert [line.split()[1] for line in err.splitlines()] == ["x-a0:", "flyte/y-a0:"]
    assert await get_actions(here(etcd, prefix), ["x-a0"], "json") == 7
    assert capfd.readouterr().out == ""


async def test_the_object_is_what_is_stored(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    # Numbers, escapes, a key twice, fields that nobody knows.
    value = taskaction("r1", "a0", None).rstrip(b"}\n")
    value += b',"new":1.50e3,"big":12345678901234567890123},"x":"\\u003c\xc3\xa9","x":-0}\n'
    await etcd.put(prefix + b"flyte/r1-a0", b"{}")
    revision = (await etcd.put(prefix + b"flyte/r1-a0", value)).revision
    assert await get_actions(here(etcd, prefix), ["r1-a0"], "jsonl") == 0
    line = capfd.readouterr().out.encode()
    assert value.strip() in line
    assert line.count(b"\n") == 1
    envelope = json.loads(line)
    del envelope["object"]
    assert envelope == {
        "key": (prefix + b"flyte/r1-a0").decode(),
        "namespace": "flyte",
        "name": "r1-a0",
        "create_revision": revision - 1,
        "mod_revision": revision,
        "version": 2,
        "lease": 0,
        "read_revision": revision,
        "codec": "json",
    }
    assert await get_actions(here(etcd, prefix), ["r1-a0"], "json") == 0
    indented = capfd.readouterr().out
    assert json.loads(indented)["object"] == json.loads(value)
    assert '"new": 1.50e3' in indented


async def test_real_objects_as_json(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    last = {event.key.rpartition(b"/")[2]: event.value for event in PUTS}
    for name, value in last.items():
        await etcd.put(prefix + b"flyte/" + name, value)
    await get_actions(here(etcd, prefix), [name.decode() for name in last], "json")
    shown = json.loads(capfd.readouterr().out)
    assert [each["object"] for each in shown] == [json.loads(value) for value in last.values()]


async def test_what_cannot_be_read_is_shown_as_bytes(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    await put_some(etcd, prefix)
    assert await get_actions(here(etcd, prefix), ["bad-a0"], "json") == 0
    shown = json.loads(capfd.readouterr().out)
    assert (shown["codec"], shown["value_base64"]) == (None, "cnViYmlzaAo=")
    assert "object" not in shown
    assert shown["reason"]
    assert await get_actions(here(etcd, prefix), ["bad-a0"], "details") == 0
    assert "unreadable" in capfd.readouterr().out


async def test_details(capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes) -> None:
    status = {
        "errorState": {"code": "Boom", "kind": "USER", "message": "it \x1b[2J\nbroke" + "!" * 300},
        "phaseHistory": [
            {"phase": "Queued", "occurredAt": "2026-01-01T00:00:00Z", "message": "waits"},
            {"phase": "Executing", "occurredAt": "2026-01-01T00:00:30Z"},
        ],
    }
    value = taskaction("r1", "a1", phase="Failed", recorded=True, status=status)
    await etcd.put(prefix + b"flyte/r1-a1", value)
    await get_actions(here(etcd, prefix), ["r1-a1"], "details")
    out = capfd.readouterr().out
    title, *lines = out.splitlines()
    assert title == "flyte/r1-a1"
    fields = dict(line.strip().split(maxsplit=1) for line in lines if line[2] != " ")
    assert fields["action"] == "p/d/r1/a1"
    assert fields["parent"] == "a0"
    assert fields["phase"] == "FAILED"
    assert fields["attempts"] == "1"
    assert fields["recorded"] == "yes"
    # Whole, however wide, and without what drives a terminal.
    assert fields["error"] == "Boom (USER): it \\x1b[2J\\nbroke" + "!" * 300
    assert fields["ended"] == "2026-01-01T00:01:30Z, after 1m30s"
    assert fields["output"].startswith("s3://data/")
    assert fields["labels"] == "flyte.org/terminal-status-recorded  true"
    assert fields["conditions"] == "Failed  True  Done  2026-01-01T00:01:30Z  so it is"
    assert fields["phases"] == "Queued     2026-01-01T00:00:00Z  waits"
    assert lines[lines.index(" " * 16 + "Executing  2026-01-01T00:00:30Z") + 1].startswith("  etcd")
    assert f"{len(value)} bytes" in fields["etcd"]


async def test_stored_white_space_breaks_no_line(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    stored = json.loads(taskaction("r1", "a0", None))
    await etcd.put(prefix + b"flyte/r1-a0", json.dumps(stored, indent=4).encode())
    await get_actions(here(etcd, prefix), ["r1-a0"], "jsonl")
    [line] = capfd.readouterr().out.splitlines()
    assert json.loads(line)["object"] == stored


async def test_nested_too_deeply_to_be_read(
    capfd: pytest.CaptureFixture[str], etcd: Etcd, prefix: bytes
) -> None:
    # Where the limit is depends on who reads; around it nothing may fail.
    for depth in (500, *range(980, 1010)):
        await etcd.put(prefix + b"flyte/r1-a0", b'{"a":' * depth + b"1" + b"}" * depth)
        for output in ("json", "jsonl"):
            assert await get_actions(here(etcd, prefix), ["r1-a0"], output) == 0
            out = capfd.readouterr().out
            assert ('"object"' in out) != ("nested too deeply" in out)
            assert '"object"' in out or depth > 500
