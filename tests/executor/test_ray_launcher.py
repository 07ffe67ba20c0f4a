"""Attempts as jobs of a Ray head whose answers the test decides."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from etcd_actions._internal.backoff import Backoff
from etcd_actions._internal.containment import Containment
from etcd_actions.executor import RaySettings
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import STARTED, AttemptDirectory
from etcd_actions.executor.attempts.outcome import find_outcome
from etcd_actions.executor.attempts.start_errors import NotStarted
from etcd_actions.executor.launchers import attempts as following
from etcd_actions.executor.launchers import ray_launcher
from etcd_actions.executor.launchers.attempts import Attempts
from etcd_actions.executor.launchers.ray_launcher import RayLauncher, job_name
from etcd_actions.executor.offers import Needs
from etcd_actions.executor.supervision.bounded_log import LOG
from tests.executor.objects import an_object
from tests.support.everyday import first_everyday
from tests.support.http_server import HttpRequest, answer
from tests.support.ray_head import RayHead
from tests.support.waiting import eventually


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for long."""
    monkeypatch.setattr(following, "_LOG_EVERY", 0.0)
    monkeypatch.setattr(ray_launcher, "_LOOK_EVERY", 0.01)
    monkeypatch.setattr(ray_launcher, "_BACKOFF", Backoff(0.01, 0.02))


class Bench:
    """One executor's attempts, and the files of one of them."""

    def __init__(self, attempts: Attempts, containment: Containment, directory: Path) -> None:
        self.attempts = attempts
        self.containment = containment
        self.place = AttemptDirectory(directory / "state", an_object(), 1)
        self.command = Command(
            ["a0", "--outputs-path", "it's"],
            {"RUN_NAME": "r1", "ACTION_NAME": "a0"},
            None,
            directory / "out",
            Needs(cpus=0.5, memory=1e6, gpus=1),
        )

    def parked(self) -> list[str]:
        return [each.kind for each in self.containment.parked]

    async def outcome(self) -> str:
        found = await find_outcome(self.place, self.command.outputs, declares_outputs=True)
        assert found.error is not None
        assert found.recoverable
        return f"{found.error.kind} {found.error.code}: {found.error.message}"


@asynccontextmanager
async def open_bench(
    head: RayHead, directory: Path, *, within: float = 5.0, token_file: Path | None = None
) -> AsyncIterator[Bench]:
    (directory / "state").mkdir(exist_ok=True)
    (directory / "out").mkdir(exist_ok=True)
    containment = Containment()
    settings = RaySettings(
        address=head.address, token_file=token_file, python=Path("/sdk/bin/python"), within=within
    )
    async with trio.open_nursery() as nursery:
        launcher = RayLauncher(settings, nursery, 1.0, 1000, containment)
        with trio.fail_after(20):
            yield Bench(Attempts(launcher, 1000, containment), containment, directory)
        nursery.cancel_scope.cancel("the test is over")


@pytest.fixture
async def bench(head: RayHead, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(head, tmp_path) as bench:
        yield bench


async def test_a_job_has_the_attempts_command_and_resources(head: RayHead, bench: Bench) -> None:
    await bench.attempts.begin(bench.place, bench.command)
    [job] = head.submitted
    assert job["submission_id"] == job_name(bench.place)
    assert job["submission_id"].startswith("etcd-actions-r1-a0-")
    assert job["submission_id"].endswith("-1")
    assert job["entrypoint"].endswith(" && /sdk/bin/a0 --outputs-path 'it'\"'\"'s'")
    assert job["entrypoint_num_cpus"] == 0.5
    assert job["entrypoint_num_gpus"] == 1
    assert job["entrypoint_memory"] == 1_000_000
    assert job["metadata"] == {"job_name": "r1/a0"}
    variables = job["runtime_env"]["env_vars"]
    assert variables["RUN_NAME"] == "r1"
    assert variables["RAY_JOB_STOP_WAIT_TIME_S"] == "1"
    assert "pip" not in job["runtime_env"]


async def test_packages_are_installed_by_ray_whose_sdk_then_runs(
    head: RayHead, bench: Bench
) -> None:
    command = replace(bench.command, packages=("pandas>=2",), needs=Needs())
    await bench.attempts.begin(bench.place, command)
    [job] = head.submitted
    assert job["runtime_env"]["pip"] == ["pandas>=2"]
    assert " && a0 --outputs-path" in job["entrypoint"]
    # Without any request Ray would run it on the head.
    assert job["entrypoint_num_cpus"] == 1.0


def test_the_entrypoint_runs_in_a_directory_of_its_own_and_removes_it(tmp_path: Path) -> None:
    command = Command(["sh", "-c", "pwd; touch it; exit 7"], {}, None, tmp_path)
    line = ray_launcher._entrypoint(command, RaySettings(address="http://127.0.0.1:1"))
    ran = subprocess.run(
        ["sh", "-c", line],
        capture_output=True,
        text=True,
        check=False,
        env={"TMPDIR": str(tmp_path)},
    )
    assert ran.returncode == 7
    assert Path(ran.stdout.strip()).parent == tmp_path
    assert not list(tmp_path.iterdir())


async def test_twice_is_once(head: RayHead, bench: Bench, tmp_path: Path) -> None:
    """Also for an executor on another machine, which has none of the first one's files."""
    await bench.attempts.begin(bench.place, bench.command)
    await bench.attempts.begin(bench.place, bench.command)
    assert (bench.attempts.started, bench.attempts.adopted) == (1, 1)
    other = tmp_path / "other"
    other.mkdir()
    async with open_bench(head, other) as elsewhere:
        await elsewhere.attempts.begin(elsewhere.place, elsewhere.command)
        head.set("FAILED", driver_exit_code=3)
        await elsewhere.attempts.wait_ended(elsewhere.place)
        assert elsewhere.place.exit_code == 3
    assert len(head.submitted) == 1


async def test_an_answer_that_is_lost_is_no_second_job(head: RayHead, bench: Bench) -> None:
    lost: list[bytes] = []

    async def lose(request: HttpRequest) -> bytes | None:
        if request.method == "POST" and not lost:
            lost.append(head.answer(request))
            return b""
        return None

    head.fault = lose
    with pytest.raises(NotStarted) as raised:
        await bench.attempts.begin(bench.place, bench.command)
    assert raised.value.by_machine
    assert bench.parked() == ["ray"]
    await trio.sleep(0.05)
    await bench.attempts.begin(bench.place, bench.command)
    assert len(head.submitted) == 1
    assert bench.parked() == []


async def test_a_refusal_is_the_actions_error(head: RayHead, bench: Bench) -> None:
    async def refuse(request: HttpRequest) -> bytes | None:
        if request.method == "POST":
            return answer(b"Traceback\nTypeError: no such field", "400 Bad Request")
        return None

    head.fault = refuse
    with pytest.raises(NotStarted, match="Ray answers 400: TypeError: no such field") as raised:
        await bench.attempts.begin(bench.place, bench.command)
    assert not raised.value.by_machine
    assert not bench.place.was_started


@pytest.mark.parametrize(
    ("status", "fields", "code"),
    [
        ("SUCCEEDED", {"driver_exit_code": 0}, 0),
        ("FAILED", {"driver_exit_code": 3}, 3),
        ("FAILED", {"driver_exit_code": -9}, -9),
    ],
)
async def test_its_exit_code_is_the_jobs(
    head: RayHead, bench: Bench, status: str, fields: dict[str, int], code: int
) -> None:
    await bench.attempts.begin(bench.place, bench.command)
    head.set(status, **fields)
    await bench.attempts.wait_ended(bench.place)
    assert bench.place.exit_code == code
    # The next executor reads it in the directory.
    assert AttemptDirectory.at(bench.place.path).exit_code == code


@pytest.mark.parametrize(
    ("status", "fields", "why"),
    [
        (
            "FAILED",
            {"error_type": "JOB_SUPERVISOR_ACTOR_DIED", "message": "the node is gone"},
            "Ray ended the job: JOB_SUPERVISOR_ACTOR_DIED: the node is gone",
        ),
        ("STOPPED", {}, "the job was stopped in Ray"),
        (None, {}, "Ray does not know the job any more: its head lost its state"),
    ],
)
async def test_a_job_without_an_exit_code_failed_by_the_system(
    head: RayHead, bench: Bench, status: str | None, fields: dict[str, str], why: str
) -> None:
    await bench.attempts.begin(bench.place, bench.command)
    if status is None:
        head.jobs.clear()
    else:
        head.set(status, **fields)
    await bench.attempts.wait_ended(bench.place)
    assert (await bench.outcome()).startswith(f"SYSTEM ProcessEnded: {why}")


async def test_a_job_that_waits_for_resources_is_not_launched(head: RayHead, bench: Bench) -> None:
    launched = trio.Event()
    asked = 0

    async def count(_: HttpRequest) -> None:
        nonlocal asked
        asked += 1

    await bench.attempts.begin(bench.place, bench.command)
    head.set("PENDING")
    head.fault = count
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.attempts.wait_ended, bench.place, launched)
        # The next question comes once an answer was read.
        await eventually(lambda: asked > 3)
        assert not launched.is_set()
        # It was submitted long ago.
        os.utime(bench.place.path / STARTED, (1, 1))
        head.set("RUNNING")
        await launched.wait()
        ran = bench.place.running_for()
        assert ran is not None
        assert ran < 60
        head.set("SUCCEEDED")


async def test_while_the_head_does_not_answer_it_is_parked_and_the_attempt_goes_on(
    head: RayHead, bench: Bench
) -> None:
    calls = []

    async def away(request: HttpRequest) -> bytes | None:
        calls.append(request)
        return answer(b"", "503 Service Unavailable")

    await bench.attempts.begin(bench.place, bench.command)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.attempts.wait_ended, bench.place)
        await trio.sleep(0.05)
        head.fault = away
        await eventually(lambda: bench.parked() == ["ray"])
        await eventually(lambda: len(calls) > 2)
        head.fault = works
        await eventually(lambda: bench.parked() == [])
        head.set("SUCCEEDED")


async def works(request: HttpRequest) -> bytes | None:
    return None


@pytest.mark.parametrize(
    "body",
    first_everyday(
        [b"no json", b"[]", b'{"status": 7}', b'{"status": "ODD"}', b"\xff\xfe", b"{" * 100_000], 2
    ),
    ids=["text", "list", "number", "unknown", "no utf-8", "deep"],
)
async def test_a_senseless_answer_ends_no_attempt(head: RayHead, bench: Bench, body: bytes) -> None:
    async def say(request: HttpRequest) -> bytes | None:
        return None if request.method == "POST" else answer(body)

    await bench.attempts.begin(bench.place, bench.command)
    head.fault = say
    with trio.move_on_after(0.2):
        await bench.attempts.wait_ended(bench.place)
        raise AssertionError("it has not ended")
    head.fault = works
    head.set("FAILED", driver_exit_code=1)
    await bench.attempts.wait_ended(bench.place)
    assert bench.place.exit_code == 1


async def test_another_404_is_no_lost_job(head: RayHead, bench: Bench) -> None:
    """A proxy, or another program on that port, knows nothing of jobs."""

    async def say(request: HttpRequest) -> bytes | None:
        return answer(b"404: Not Found", "404 Not Found")

    await bench.attempts.begin(bench.place, bench.command)
    head.fault = say
    with trio.move_on_after(0.2):
        await bench.attempts.wait_ended(bench.place)
        raise AssertionError("it has not ended")


async def test_a_head_that_hangs_or_trickles_costs_one_call(head: RayHead, tmp_path: Path) -> None:
    async def hang(request: HttpRequest) -> bytes | None:
        await request.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(40):
            await request.send(b" ")
            await trio.sleep(0.05)
        return b""

    async with open_bench(head, tmp_path, within=0.2) as bench:
        head.fault = hang
        with pytest.raises(NotStarted, match=r"did not answer|in time") as raised:
            await bench.attempts.begin(bench.place, bench.command)
        assert raised.value.by_machine
        head.fault = works
        await trio.sleep(0.05)
        await bench.attempts.begin(bench.place, bench.command)


async def test_stop_ends_the_job_or_what_is_not_launched(head: RayHead, bench: Bench) -> None:
    await bench.attempts.begin(bench.place, bench.command)
    await bench.attempts.end(bench.place)
    assert head.stopped == [job_name(bench.place)]
    assert head.jobs[job_name(bench.place)]["status"] == "STOPPED"
    head.set("PENDING")
    await bench.attempts.end(bench.place)
    head.jobs.clear()
    await bench.attempts.end(bench.place)


async def test_a_stop_is_repeated_until_the_head_answers(head: RayHead, bench: Bench) -> None:
    async def away(request: HttpRequest) -> bytes | None:
        return answer(b"", "503 Service Unavailable")

    await bench.attempts.begin(bench.place, bench.command)
    head.fault = away
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.attempts.end, bench.place)
        await eventually(lambda: bench.parked() == ["ray"])
        assert not head.stopped
        head.fault = works
    assert head.jobs[job_name(bench.place)]["status"] == "STOPPED"


async def test_the_log_is_copied_while_it_grows_and_is_bounded(head: RayHead, bench: Bench) -> None:
    await bench.attempts.begin(bench.place, bench.command)
    log = bench.place.path / LOG
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.attempts.wait_ended, bench.place)
        head.logs[job_name(bench.place)] = "one\n"
        await eventually(lambda: log.exists() and log.read_bytes() == b"one\n")
        head.logs[job_name(bench.place)] = "one\n" + "x" * 3000 + "end\n"
        head.set("FAILED", driver_exit_code=1)
    data = log.read_bytes()
    assert len(data) <= 1000
    assert data.startswith(b"(2072 bytes are omitted here)\n")
    assert data.endswith(b"xend\n")
    assert "end" in await bench.outcome()


async def test_a_token_is_read_for_each_call_and_follows_no_redirect(
    head: RayHead, tmp_path: Path
) -> None:
    tokens = []

    async def note(request: HttpRequest) -> bytes | None:
        tokens.append(request.headers.get("authorization"))
        if len(tokens) > 1:
            return answer(b"", "302 Found", f"Location: {head.address}/elsewhere")
        return None

    head.fault = note
    token = tmp_path / "token"
    token.write_text("one\n")
    async with open_bench(head, tmp_path, token_file=token) as bench:
        await bench.attempts.begin(bench.place, bench.command)
        token.write_text("two\n")
        with trio.move_on_after(0.2):
            await bench.attempts.wait_ended(bench.place)
    assert tokens[:2] == ["Bearer one", "Bearer two"]


def test_names_fit_and_differ() -> None:
    """Two attempts, and two objects of one name, have names of their own."""
    places = [
        AttemptDirectory(Path("/state"), an_object("n" * 300, create_revision=revision), attempt)
        for revision in (1, 2)
        for attempt in (1, 11)
    ]
    names = {job_name(place) for place in places}
    assert len(names) == 4
    assert all(
        len(name) < 200 and name.replace("-", "").replace(".", "").isalnum() for name in names
    )


async def test_another_executor_that_is_about_to_submit_it_is_awaited(
    head: RayHead, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has the lock, and may be stopped: the attempt is neither lost nor submitted by two."""
    bench.place.make()
    lock = bench.place.try_lock()
    assert lock is not None
    monkeypatch.setattr(following, "_STARTED_WITHIN", 0.1)
    with pytest.raises(NotStarted, match="another executor starts it now") as raised:
        await bench.attempts.begin(bench.place, bench.command)
    assert raised.value.by_machine
    monkeypatch.setattr(following, "_STARTED_WITHIN", 60.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.attempts.begin, bench.place, bench.command)
        await trio.sleep(0.1)
        assert not head.submitted
        os.close(lock)
    assert len(head.submitted) == 1
