"""``submit``: inputs of all types as the SDK converts them, and what it says of unusable ones."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.cli.command import Finished, finish, running
from tests.sdk.service import PROGRAMS, Site, free_port
from tests.sdk.test_front_auth import tls
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow

TYPED = f"{PROGRAMS / 'typed.py'}:main"


@pytest.fixture
def site(
    shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, sdk_python: Path
) -> Iterator[Site]:
    site = Site(tmp_path, shared_etcd.endpoint, prefix, sdk_python)
    yield site
    site.end_all()


def inputs(directory: Path) -> list[str]:
    """One of each type, as a person writes them."""
    folder = directory / "folder"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / name).write_text(name)
    given = {
        "line": '{"begin": {"x": 1, "y": 2}, "colour": "blue", '
        '"end": {"x": 3, "y": 4.5, "at": "2026-01-02T03:04:05+00:00"}}',
        "models": '[{"name": "first", "tags": ["t"]}]',
        "table": '{"k": {"name": "second"}}',
        "maybe": "3",
        "none": "null",
        "text": "some text",
        "colours": '["red", "BLUE"]',
        "times": '["2026-01-02T03:04:05+00:00"]',
        "files": f'["{folder}/one", "{folder}/two"]',
        "file": f"{folder}/one",
        "folder": str(folder),
        "kind": "b",
        "Upper": "4",
        "at": "2026-01-02T03:04:05+00:00",
        "day": "2026-01-02",
        "wait": "90",
        "flag": "true",
        "on": "false",
    }
    return [flag for name, value in given.items() for flag in ("--input", f"{name}={value}")]


RESULT = [
    {
        "begin": {"x": 1, "y": 2.0, "at": None},
        "end": {"x": 3, "y": 4.5, "at": "2026-01-02 03:04:05+00:00"},
        "colour": "BLUE",
    },
    [{"name": "first", "tags": ["t"]}],
    [
        "['k'] 3 None some text",
        "['RED', 'BLUE'] ['2026-01-02T03:04:05+00:00'] b",
        "['one', 'two'] one ['one', 'two']",
        "4 2026-01-02T03:04:05+00:00 2026-01-02 90 True 2.5 False",
    ],
]


@pytest.mark.parametrize("through_the_service", [False, True], ids=["etcd", "service"])
async def test_the_sdk_converts_inputs_of_all_types(
    site: Site, tmp_path: Path, through_the_service: bool
) -> None:
    port = free_port()
    service = ("--service", f"127.0.0.1:{port}") if through_the_service else ()
    with site.service(port, "--blob-dir", str(tmp_path / "blobs")) as running_service:
        await running_service.logged("serving")
        with running(
            tmp_path / "notes",
            "submit",
            TYPED,
            *inputs(tmp_path),
            *("--output-base", tmp_path / "runs"),
            *service,
            *site.common,
            *site.python,
            # What the SDK imports for files is deprecated in part.
            PYTHONWARNINGS="default",
        ) as submission:
            assert await submission.wait() == 0, submission.err
            assert submission.rows()[-1] == {"result": RESULT}
    assert list((tmp_path / "runs").rglob("outputs.pb"))
    # Without the service the inputs are where the outputs are.
    assert bool(list((tmp_path / "blobs").rglob("inputs.pb"))) is through_the_service


@pytest.mark.parametrize(
    ("target", "given", "told"),
    [
        ("many.py:tree", ["branches=x"], r"--input branches=x: no int: .*not a valid integer"),
        ("many.py:tree", ["brances=1"], r"no such input: did you mean branches\? there is "),
        ("many.py:tree", ["branches=1"], r"--input width=VALUE is missing: .*branches \(int\)"),
        ("many.py:tre", [], r"has no task tre: did you mean tree\? there is "),
    ],
    ids=["value", "name", "missing", "task"],
)
async def test_what_is_unusable_is_one_line_with_a_suggestion(
    site: Site, tmp_path: Path, target: str, given: list[str], told: str
) -> None:
    flags = [flag for each in given for flag in ("--input", each)]
    done = await command(site, target, tmp_path, *flags)
    assert done.code == 2, done.err
    assert "Traceback" not in done.err
    assert pytest.RaisesExc(Exception, match=told).matches(Exception(done.err)), done.err


async def test_a_name_is_refused_before_anything_runs(site: Site, tmp_path: Path) -> None:
    flags = ("--input", "branches=1", "--input", "width=1", "--input", f"directory={tmp_path}")
    long = await command(site, "many.py:tree", tmp_path, *flags, "--run", "x" * 31)
    assert long.code == 2
    assert "give at most 30" in long.err
    first, second = [
        await command(site, "many.py:tree", tmp_path, *flags, "--run", "r1", "--detach")
        for _ in range(2)
    ]
    assert first.code == 0, first.err
    assert second.code == 10
    assert "already exists" in second.err


async def test_who_does_not_answer_is_named(tmp_path: Path, sdk_python: Path) -> None:
    for flags in (("--service", "127.0.0.1:1"), ("--endpoints", "127.0.0.1:1")):
        rest = (*flags, "--output-base", str(tmp_path), "--python", str(sdk_python))
        target = f"{PROGRAMS / 'retries.py'}:main"
        arguments = ("submit", target, "--input", f"directory={tmp_path}", *rest)
        done = await trio.to_thread.run_sync(partial(finish, *arguments))
        assert done.code == 3, done.err
        assert "127.0.0.1:1" in done.err.splitlines()[-1]


async def test_a_service_that_wants_tls_and_a_token(site: Site, tmp_path: Path) -> None:
    served, authority = tls(tmp_path)
    (tmp_path / "tokens").write_text("of-alice name=alice\n")
    (tmp_path / "token").write_text("of-alice\n")
    listen = ("--listen-cert", str(served.cert), "--listen-key", str(served.key))
    port = free_port()
    blobs = ("--blob-dir", str(tmp_path / "blobs"), "--token-file", str(tmp_path / "tokens"))
    with site.service(port, *listen, *blobs) as running_service:
        await running_service.logged("serving")
        flags = ("--input", "branches=1", "--input", "width=1", "--input", f"directory={tmp_path}")
        service = ("--service", f"https://127.0.0.1:{port}", "--service-cacert", authority)
        token = ("--service-token-file", str(tmp_path / "token"))
        done = await command(site, "many.py:tree", tmp_path, *flags, *service, *token)
        assert done.code == 0, done.err
        assert '"result"' in done.out
        done = await command(site, "many.py:tree", tmp_path, *flags, *service)
        assert done.code == 4, done.err
        assert "a command that prints it" in done.err.splitlines()[-1]


async def command(site: Site, target: str, directory: Path, *flags: str) -> Finished:
    arguments = (*flags, "--output-base", str(directory / "runs"), *site.common, *site.python)
    return await trio.to_thread.run_sync(
        lambda: finish("submit", f"{PROGRAMS}/{target}", *arguments)
    )
