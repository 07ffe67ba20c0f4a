"""An attempt ends with its main process, and its whole tree ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from etcd_actions.executor.supervision import process_tree
from tests.executor.attempts import EVERYDAY_WAYS, Bench, Way, lives, numbers_in, open_bench
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually

# Grandchildren note their numbers in $HERE/tree. They are as far away as processes can be.
TREE = """
import os, signal, sys, time

here = os.environ["HERE"] + "/tree"
os.makedirs(here, exist_ok=True)

def note():
    open(f"{here}/{os.getpid()}.new", "w").close()
    os.rename(f"{here}/{os.getpid()}.new", f"{here}/{os.getpid()}")

def wait_for(count):
    while len([name for name in os.listdir(here) if name.isdigit()]) < count:
        time.sleep(0.01)

def child():
    note()
    time.sleep(1000)

def session():
    os.setsid()
    child()

def daemon():
    os.setsid()
    if os.fork():
        os._exit(0)
    os.closerange(0, 256)
    child()

def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.setsid()
    child()

def stopped():
    note()
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(1000)

def execed():
    os.setsid()
    note()
    os.closerange(3, 256)
    os.execve("/bin/sleep", ["sleep", "1000"], {})

def start(*functions):
    for function in functions:
        if os.fork() == 0:
            try:
                function()
            finally:
                os._exit(1)
    wait_for(len(functions))
"""


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_the_whole_tree_ends_with_the_main_process(tmp_path: Path, way: Way) -> None:
    """Children in the background, in other sessions, orphans, without descriptors, stopped."""
    async with open_bench(tmp_path, way) as bench:
        code = TREE + "start(child, session, daemon, stopped, execed)\nsys.exit(7)"
        with trio.fail_after(20):
            assert await bench.run(code) == 7
        tree = numbers_in(tmp_path / "tree")
        assert len(tree) == 5
        assert not [pid for pid in tree if lives(pid)]
        assert not bench.place().is_alive


async def test_a_shell_that_leaves_a_child_in_the_background_has_ended(tmp_path: Path) -> None:
    async with open_bench(tmp_path, "exec") as bench:
        place = bench.place()
        await bench.attempts.begin(place, bench.raw("sh", "-c", "sleep 1000 & exit 0"))
        with trio.fail_after(20):
            await bench.attempts.wait_ended(place)
        assert place.exit_code == 0


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_what_ignores_the_question_is_killed_after_the_grace(
    tmp_path: Path, way: Way
) -> None:
    async with open_bench(tmp_path, way, kill_grace=0.2) as bench:
        with trio.fail_after(20):
            assert await bench.run(TREE + "start(deaf, daemon)\nsys.exit(0)") == 0
        assert not [pid for pid in numbers_in(tmp_path / "tree") if lives(pid)]


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_ending_an_attempt_reaches_every_process(tmp_path: Path, way: Way) -> None:
    async with open_bench(tmp_path, way, kill_grace=0.2) as bench:
        place = bench.place()
        code = TREE + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        code += "start(child, session, daemon, deaf, stopped, execed)\nnote()\ntime.sleep(1000)"
        await bench.attempts.begin(place, bench.command(code))
        tree = tmp_path / "tree"
        await eventually(lambda: tree.exists() and len(numbers_in(tree)) == 7)
        with trio.fail_after(20):
            await bench.attempts.end(place)
        assert not [pid for pid in numbers_in(tree) if lives(pid)]
        assert place.exit_code == -signal.SIGKILL
        assert not place.is_alive


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
@pytest.mark.parametrize(
    ("harm", "code"),
    first_everyday(
        [
            ("os.killpg(0, signal.SIGKILL)", -signal.SIGKILL),
            ("os.kill(0, signal.SIGTERM)", -signal.SIGTERM),
            ("os.closerange(0, 4096); os._exit(5)", 5),
            (
                "[os.kill(os.getppid(), each) for each in (signal.SIGHUP, signal.SIGINT)]; "
                "sys.exit(6)",
                6,
            ),
            ("[os._exit(0) if os.fork() == 0 else 0 for _ in range(200)]; sys.exit(4)", 4),
            ("os.rename(STATE, STATE + '.moved'); sys.exit(8)", 8),
        ],
        2,
    ),
    ids=["kills its group", "asks its group", "closes all", "signals", "many forks", "moves"],
)
async def test_a_supervisor_survives_its_task(
    tmp_path: Path, way: Way, harm: str, code: int
) -> None:
    async with open_bench(tmp_path, way) as bench:
        prefix = f"STATE = {str(bench.place().path)!r}\n"
        with trio.fail_after(20):
            assert await bench.run(TREE + prefix + harm) == code


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_a_task_that_multiplies_is_ended(tmp_path: Path, way: Way) -> None:
    """Each process starts others for as long as it lives."""
    code = """
import os, time
end = time.monotonic() + 20
for _ in range(4):
    os.fork()
os.setsid() if os.getpid() != os.getpgrp() else None
while time.monotonic() < end:
    if os.fork() == 0:
        os._exit(0) if os.fork() else time.sleep(0.05)
        os._exit(0)
    os.wait()
"""
    async with open_bench(tmp_path, way, kill_grace=0.1) as bench:
        place = bench.place()
        await bench.attempts.begin(place, bench.command(code))
        await trio.sleep(0.2)  # For the load: they multiply meanwhile.
        with trio.fail_after(15):
            await bench.attempts.end(place)
        mark = f"_ATTEMPT_MARK={place.mark}".encode()
        assert not [
            pid for pid in process_tree.numbers() if lives(int(pid)) and mark in environment(pid)
        ]


def environment(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_a_task_whose_supervisor_is_killed_ends(tmp_path: Path, way: Way) -> None:
    async with open_bench(tmp_path, way) as bench:
        code = TREE + "start(child, session, daemon)\nos.kill(os.getppid(), signal.SIGKILL)\n"
        with trio.fail_after(20):
            assert await bench.run(code + "time.sleep(1000)") is None
        tree = numbers_in(tmp_path / "tree")
        await eventually(lambda: not [pid for pid in tree if lives(pid)], within=20)


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_a_supervisor_that_is_stopped_is_ended_all_the_same(tmp_path: Path, way: Way) -> None:
    async with open_bench(tmp_path, way, kill_grace=0.1) as bench:
        place = bench.place()
        code = TREE + "start(session)\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(1000)"
        await bench.attempts.begin(place, bench.command(code))
        tree = tmp_path / "tree"
        await eventually(lambda: tree.exists() and len(numbers_in(tree)) == 1)
        with trio.fail_after(20):
            await bench.attempts.end(place)
        assert not [pid for pid in numbers_in(tree) if lives(pid)]


async def test_no_other_process_is_killed_for_a_number(tmp_path: Path) -> None:
    """Numbers are used anew, and a task can write any into its directory."""
    victim = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        async with open_bench(tmp_path, "exec") as bench:
            place = bench.place()
            assert await bench.run("pass") == 0
            for name in ("started", "supervisor"):
                (place.path / name).write_text(str(victim.pid))
            for number in (signal.SIGTERM, signal.SIGKILL):
                place.kill(number)
            assert place.kill_left_behind() == 0
            with trio.fail_after(20):
                await bench.attempts.end(place)
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


DRIVER = """
import sys
from pathlib import Path
import trio
from tests.executor.attempts import open_bench
from tests.support.everyday import first_everyday

async def main():
    async with open_bench(Path(sys.argv[1]), sys.argv[2]) as bench:
        await bench.attempts.begin(bench.place(), bench.command(sys.argv[3]))
        print("begun", flush=True)
        await trio.sleep_forever()

trio.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_an_attempt_survives_its_executor_and_is_found_once(tmp_path: Path, way: Way) -> None:
    """Killed, with the fork server: it lives on, is adopted, and its end is known."""
    code = TREE + textwrap.dedent(
        """
        start(daemon, session)
        note()
        while not os.path.exists(os.environ["HERE"] + "/go"):
            time.sleep(0.01)
        sys.exit(9)
        """
    )
    root = Path(__file__).parents[2]
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path), way, code],
        cwd=root,
        stdout=subprocess.PIPE,
    )
    assert driver.stdout is not None
    with driver.stdout as said:
        while await trio.to_thread.run_sync(said.readline) != b"begun\n":
            assert driver.poll() is None
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    async with open_bench(tmp_path, "exec") as bench:
        place = bench.place()
        tree = tmp_path / "tree"
        await eventually(lambda: tree.exists() and len(numbers_in(tree)) == 3)
        assert place.is_alive
        await bench.attempts.begin(place, bench.command("raise SystemExit(1)"))
        assert (bench.attempts.started, bench.attempts.adopted) == (0, 1)
        (tmp_path / "go").touch()
        with trio.fail_after(20):
            await bench.attempts.wait_ended(place)
        assert place.exit_code == 9
        assert not [pid for pid in numbers_in(tree) if lives(pid)]


@pytest.mark.slow
async def test_an_adopted_attempt_is_ended_whole(tmp_path: Path) -> None:
    async with open_bench(tmp_path, "exec", kill_grace=0.2) as bench:
        code = TREE + "start(deaf, daemon)\nnote()\ntime.sleep(1000)"
        await bench.attempts.begin(bench.place(), bench.command(code))
        tree = tmp_path / "tree"
        await eventually(lambda: tree.exists() and len(numbers_in(tree)) == 3)
    async with open_bench(tmp_path, "exec", kill_grace=0.2) as other:
        await other.attempts.begin(other.place(), other.command("raise SystemExit(1)"))
        with trio.fail_after(20):
            await other.attempts.end(other.place())
        assert not [pid for pid in numbers_in(tree) if lives(pid)]


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_a_task_has_no_descriptor_of_ours(tmp_path: Path, way: Way) -> None:
    code = """
import os
for each in sorted(os.listdir("/proc/self/fd"), key=int):
    try:
        print(each, os.readlink(f"/proc/self/fd/{each}"))
    except OSError:
        pass
"""
    async with open_bench(tmp_path, way) as bench:
        assert await bench.run(code) == 0
        lines = bench.place().last_lines().splitlines()
    assert [line.split(":")[0] for line in lines[:3]] == ["0 /dev/null", "1 pipe", "2 pipe"]
    assert len(lines) == 3, lines


@pytest.mark.parametrize("way", EVERYDAY_WAYS)
async def test_the_supervisors_and_the_fork_server_have_none_of_our_environment(
    tmp_path: Path, way: Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task can read what its parents have: they are of the same user."""
    for name in ("ETCDCTL_PASSWORD", "AWS_SECRET_ACCESS_KEY", "ANYTHING"):
        monkeypatch.setenv(name, "hunter2")
    code = """
import os
pid = os.getppid()
while pid > 1:
    print(pid, open(f"/proc/{pid}/environ", "rb").read())
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    pid = int(fields[1])
    if pid > 1 and b"pytest" in open(f"/proc/{pid}/cmdline", "rb").read():
        break
"""
    async with open_bench(tmp_path, way) as bench:
        assert await bench.run(code) == 0
        said = bench.place().last_lines()
    assert str(os.getpid()) not in said.split()
    assert "PATH" in said
    assert "hunter2" not in said


async def test_two_that_begin_one_attempt_start_it_once(tmp_path: Path) -> None:
    async with open_bench(tmp_path, "exec") as bench:
        code = TREE + "note()\ntime.sleep(1)"

        async def begin() -> None:
            await bench.attempts.begin(bench.place(), bench.command(code))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(begin)
        with trio.fail_after(20):
            await bench.attempts.end(bench.place())
        assert (bench.attempts.started, bench.attempts.adopted) == (1, 3)
        assert isinstance(bench, Bench)


@pytest.mark.parametrize("error", first_everyday([RuntimeError, RecursionError, MemoryError]))
async def test_what_goes_wrong_while_a_supervisor_is_heard_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Its lock still says when it ends."""
    from etcd_actions.executor.launchers.local import _Report  # noqa: PLC0415

    note = _Report._note

    def fail(report: _Report, line: bytes) -> None:
        note(report, line)
        raise error("it is unexpected")

    async with open_bench(tmp_path, "launch") as bench:
        with monkeypatch.context() as patch:
            patch.setattr(_Report, "_note", fail)
            code = (
                TREE + "start(daemon)\ntime.sleep(0.2)\nsys.exit(7)"
            )  # It ends after the failure.
            assert await bench.run(code) == 7
        assert bench.containment.failures == {"attempt": 1}
        assert await bench.run("raise SystemExit(4)", "other") == 4
