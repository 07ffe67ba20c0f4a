"""A machine that lacks something: a clear error that names the flag, or the rest goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.embedded.data_directory import default_data_dir, running_endpoint
from etcd_actions.errors import ConfigError, NoSpace
from etcd_actions.etcd.api import Etcd
from etcd_actions.testing import EtcdFactory
from tests.cli.command import DEADLINE, Finished, environment, finish, running
from tests.support.etcd_server import EtcdServer
from tests.support.waiting import eventually_holds

NOBODY = 54321
LOCAL = ("run", "--endpoints", "127.0.0.1:1", "--executor", "local")


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("HOME", "XDG_DATA_HOME", "ETCD_ACTIONS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", home)


@pytest.mark.usefixtures("homeless")
def test_without_a_home_the_data_directory_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="--data-dir"):
        default_data_dir()


@pytest.mark.usefixtures("homeless")
def test_without_a_home_no_etcd_of_its_own_is_found() -> None:
    assert running_endpoint() is None


def test_a_user_who_is_not_there() -> None:
    with pytest.raises(ConfigError, match="--data-dir"):
        running_endpoint(Path("~nobody-of-that-name/x"))


def in_a_deleted_directory(tmp_path: Path, *arguments: str) -> Finished:
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$1"; rmdir "$1"; shift; exec "$@"'
    command = (sys.executable, "-m", "etcd_actions", *arguments)
    done = subprocess.run(
        ["sh", "-c", script, "sh", str(gone), *command],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=DEADLINE,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("run", "--data-dir", "x"), 2, "--data-dir"),
        ((*LOCAL, "--executor-state-dir", "x"), 2, "--executor-state-dir"),
        ((*LOCAL, "--python", "bin/python"), 2, "--python"),
        (("submit", "x.py:x"), 6, "x.py"),
        (("record", "x", "--endpoints", "127.0.0.1:1"), 3, "127.0.0.1:1"),
    ],
    ids=["data-dir", "state-dir", "python", "submit", "record"],
)
def test_in_a_directory_that_was_deleted(
    tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    done = in_a_deleted_directory(tmp_path, *arguments)
    assert done.code == code, done.err
    assert told in done.complaint


@pytest.mark.slow
def test_a_user_without_home_and_name(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs the right to be another user")
    code = (
        f"import os, sys; os.setgid({NOBODY}); os.setuid({NOBODY}); sys.argv = ['etcd-actions', "
        "'run']; from etcd_actions.cli import process_main; process_main()"
    )
    for name in ("structlog", "click", "trio"):
        __import__(name)
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=DEADLINE,
        check=False,
    )
    if "Permission denied" in done.stderr or "ModuleNotFoundError" in done.stderr:
        pytest.skip("another user cannot read what is installed here")
    assert done.returncode == 2, done.stderr
    assert "--data-dir" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (("--data-dir", "{file}/x"), 2, "--data-dir"),
        ((*LOCAL[1:], "--executor-state-dir", "{file}/x"), 2, "--executor-state-dir"),
    ],
    ids=["data", "state"],
)
def test_a_directory_that_cannot_be_made(
    tmp_path: Path, flags: tuple[str, ...], code: int, told: str
) -> None:
    # A file in the way is refused to root, too.
    file = tmp_path / "file"
    file.touch()
    done = finish("run", *(flag.replace("{file}", str(file)) for flag in flags))
    assert done.code == code, done.err
    assert told in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


@pytest.mark.parametrize("flag", ["--listen", "--monitoring-listen"])
@pytest.mark.parametrize("host", ["a..b", "a" * 80 + ".x"])
@pytest.mark.slow
def test_a_host_name_that_no_host_can_have(
    shared_etcd: EtcdServer, prefix: bytes, flag: str, host: str
) -> None:
    common = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    done = finish("run", *common, flag, f"{host}:1")
    assert done.code == 2, done.err
    assert flag in done.err.splitlines()[-1]
    assert "Traceback" not in done.err


async def fill(etcd: Etcd) -> None:
    for number in range(100):
        await etcd.put(b"/filler%d" % number, b"x" * 300_000)


@pytest.mark.slow
async def test_only_the_executor_waits_while_etcd_has_no_space(
    tmp_path: Path, etcd_factory: EtcdFactory
) -> None:
    full = etcd_factory(flags=["--quota-backend-bytes=1000000"])
    async with open_etcd(full.endpoint) as etcd:
        with pytest.raises(NoSpace):
            await fill(etcd)
    arguments = (
        *("run", "--endpoints", full.endpoint, "--executor", "local"),
        *("--executor-state-dir", tmp_path / "state", "--executor-fork-server=false"),
    )
    with running(tmp_path, *arguments) as run:
        waits = await run.logged("executor_waits")
        assert "space" in waits["error"]
        await run.logged("serving")
        await run.logged("synced")
        listen = run.logs("monitoring")[0]["listen"]
        checks: dict[str, str] = {}

        async def is_contained() -> bool:
            checks.update(await trio.to_thread.run_sync(ready, listen))
            return "executor" in checks["contained"]

        # One failure may be a hiccup: it has to last for some seconds.
        await eventually_holds(is_contained)
        assert checks["stream"] == "ok"
        assert "Traceback" not in run.err
        run.signal(signal.SIGTERM)
        assert await run.wait() == 0


def ready(address: str) -> dict[str, str]:
    try:
        url = f"http://{address}/readyz"
        request = urllib.request.Request(url, headers={"Accept": "application/json"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            body = answer.read()
    except urllib.error.HTTPError as refusal:
        with refusal:
            body = refusal.read()
    checks: dict[str, str] = json.loads(body)["checks"]
    return checks
