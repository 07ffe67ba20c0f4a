"""The commands that read runs and actions, from etcd and through the service."""

import json
import re
import shlex
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from etcd_actions import ActionId, ErrorState, Phase
from etcd_actions.cli.commands.attach import attach_to_run
from etcd_actions.cli.commands.describe import describe_actions
from etcd_actions.cli.commands.get import get_actions
from etcd_actions.cli.commands.list_actions import Filter, list_actions
from etcd_actions.cli.commands.runs import RunFilter, show_runs, sort_key
from etcd_actions.cli.commands.tree import show_tree
from etcd_actions.cli.commands.wait import phases_of, wait_for_phase
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.options import CommonOptions
from etcd_actions.cli.output_options import FORMATS
from etcd_actions.errors import ConfigError, NotFound, ServiceRefused
from etcd_actions.etcd.api import Etcd, KeyRange
from tests.cli.command import Finished, finish, running
from tests.cli.reading_site import TRACEBACK, Site, open_site
from tests.support import flyte
from tests.support.documents import block
from tests.support.etcd_server import EtcdServer
from tests.support.everyday import first_everyday
from tests.support.waiting import eventually_holds

SOURCES = ("etcd", "service")
Read = Callable[[CommonOptions], Awaitable[int]]


@pytest.fixture
async def site(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> AsyncIterator[Site]:
    """A run that failed, and one that runs."""
    async with open_site(etcd, shared_etcd, prefix, tmp_path) as site:
        await site.put_run("failed", "c1", "c2")
        error = ErrorState("Boom", "USER", TRACEBACK)
        await site.status("failed/c1", Phase.RUNNING)
        await site.status("failed/c1", Phase.FAILED, error)
        await site.status("failed/c2", Phase.SUCCEEDED)
        await site.status("failed/a0", Phase.RUNNING)
        await site.status("failed/a0", Phase.FAILED, error)
        await site.recorded("failed", Phase.FAILED.value)
        await site.marked("failed")
        await site.put_run("long-running", "c1")
        await site.status("long-running/a0", Phase.RUNNING)
        await site.recorded("long-running", Phase.RUNNING.value)
        yield site


async def output(
    site: Site, capfd: pytest.CaptureFixture[str], read: Read, source: str
) -> tuple[int, str, str]:
    """The exit code, standard output and standard error of a command."""
    with trio.fail_after(30):
        code = await read(site.common(source))
    out, err = capfd.readouterr()
    return code, out, err


async def same(site: Site, capfd: pytest.CaptureFixture[str], read: Read) -> tuple[int, str, str]:
    """The same, which does not depend on where it reads."""
    found = [await output(site, capfd, read, source) for source in SOURCES]
    assert _without_ages(found[0][1]) == _without_ages(found[1][1])
    assert found[0][::2] == found[1][::2]
    return found[0]


def _without_ages(text: str) -> str:
    """A second may pass between the two commands, and another key may change."""
    text = re.sub(r"\b([0-9]+[dhms])+\b", "AGE", text)
    text = re.sub(r"\b(revision|read_revision)(\W{1,3})[0-9]+", r"\1\2N", text)
    return re.sub(" +", " ", text)


async def test_runs(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    async def rows(form: str = "jsonl", **more: Any) -> str:
        flags = {key: more.pop(key) for key in ("limit", "sort_by", "counts") if key in more}
        selected = RunFilter(**more)
        code, out, err = await same(
            site, capfd, lambda common: show_runs(common, selected, output=form, **flags)
        )
        assert (code, err) == (0, "")
        return out

    newest, oldest = map(json.loads, (await rows()).splitlines())
    assert (newest["run"], newest["phase"], newest["done"]) == ("long-running", "RUNNING", 0)
    assert (oldest["run"], oldest["phase"]) == ("failed", "FAILED")
    assert (oldest["done"], oldest["actions"], oldest["task"]) == (3, 3, "main")
    header, first, second = (await rows("table")).splitlines()
    assert header.split()[:4] == ["PROJECT", "DOMAIN", "RUN", "PHASE"]
    assert first.split()[:4] == ["p", "d", "long-running", "RUNNING"]
    assert "3/3" in second
    assert await rows("name") == "p/d/long-running\np/d/failed\n"
    assert json.loads(await rows("json"))["runs"] == [newest, oldest]
    assert await rows("name", phases=["FAILED"]) == "p/d/failed\n"
    assert await rows("name", project="q") == ""
    assert await rows("name", sort_by="run", limit=1) == "p/d/failed\n"
    assert await rows("name", newer_than=3600.0, domain="d") == await rows("name")
    assert await rows("name", older_than=3600.0) == ""
    assert await rows("name", labels={"team": None}) == ""
    for source in SOURCES:
        nothing = RunFilter(project="q")
        await show_runs(site.common(source), nothing, output="table")
        assert "no such runs" in capfd.readouterr().err
    assert "- project: p\n  domain: d\n  run: failed\n" in await rows("yaml", phases=["FAILED"])
    assert "done" not in json.loads((await rows(counts=False)).splitlines()[0])


async def test_runs_of_an_etcd_without_records(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    """As one that no process has served: the stored roots are the runs."""
    common, out = site.common("etcd"), ""

    async def has_shown_roots() -> bool:
        nonlocal out
        # A report that is still to come writes a record again.
        await site.etcd.delete(KeyRange.of_prefix(site.keys.runs))
        assert await show_runs(common, RunFilter(), output="jsonl") == ExitCode.OK
        out, err = capfd.readouterr()
        return "these are the stored roots" in err

    await eventually_holds(has_shown_roots)
    rows = {each["run"]: each for each in map(json.loads, out.splitlines())}
    assert rows["failed"]["phase"] == "FAILED"
    assert (rows["failed"]["done"], rows["failed"]["actions"]) == (3, 3)
    await show_runs(common, RunFilter(phases=["FAILED"]), limit=1, output="name")
    assert capfd.readouterr().out == "p/d/failed\n"
    await show_runs(common, RunFilter(project="q"), output="name")
    assert capfd.readouterr() == ("", "")


async def test_describe(site: Site, capfd: pytest.CaptureFixture[str]) -> None:
    async def described(*names: str, form: str = "table") -> str:
        code, out, err = await same(
            site, capfd, lambda common: describe_actions(common, names, form)
        )
        assert (code, err) == (0, "")
        return out

    text = await described("failed/c1")
    title, *lines = text.splitlines()
    assert title == "p/d/failed/c1"
    assert "  Phase       FAILED" in lines
    for line in TRACEBACK.splitlines():
        assert any(line in each for each in lines)
    events = lines[lines.index("Events") + 2 :]
    phases = [line.split()[2] for line in events[: events.index("")]]
    assert phases == ["QUEUED", "RUNNING", "FAILED"]
    document = json.loads(await described("failed", form="json"))
    assert document["action"]["action"] == "a0"
    assert document["failed"] == ["c1 (FAILED)"]
    assert document["attempts"][0]["error"].startswith("Boom: Traceback")
    both = await described("failed-c1", "p/d/long-running", form="jsonl")
    assert [json.loads(line)["action"]["run"] for line in both.splitlines()] == [
        "failed",
        "long-running",
    ]
    for source in SOURCES:
        with pytest.raises(NotFound, match=r"did you mean .*failed/c1"):
            await describe_actions(site.common(source), ["failed/c3"], None)
        with pytest.raises(NotFound, match=r"did you mean .*failed/c1"):
            await describe_actions(site.common(source), ["p/d/failed/c3"], None)


@pytest.mark.parametrize("form", first_everyday(FORMATS))
async def test_objects(site: Site, capfd: pytest.CaptureFixture[str], form: str) -> None:
    """``list``, ``tree`` and ``get``: the bytes are those of etcd, also through the service."""
    for selected in (
        Filter(),
        Filter(run="failed"),
        Filter(phases={"FAILED"}),
        Filter(project="q"),
    ):
        listed = await same(site, capfd, partial(list_actions, selected=selected, output=form))
        assert listed[0] == ExitCode.OK
        assert ("p/d/failed/c1" in listed[1]) == (form == "name" and selected.project is None)
    for name in ("failed", "p/d/failed", "failed/c1", "failed-c1"):
        code, out, err = await same(site, capfd, partial(show_tree, run=name, output=form))
        assert (code, "c2" in out, err) == (ExitCode.OK, True, "")
    code, out, err = await same(
        site, capfd, lambda common: get_actions(common, ["failed/c1", "long-running"], form)
    )
    assert (code, err) == (ExitCode.OK, "")
    assert "c1" in out
    code, out, err = await same(
        site, capfd, lambda common: get_actions(common, ["failed/c9", "failed/c2"], form)
    )
    assert (code, "did you mean failed/c2" in err) == (ExitCode.NOT_FOUND, True)
    assert "c2" in out


async def test_a_token_of_one_project_reads_no_other(
    site: Site, capfd: pytest.CaptureFixture[str]
) -> None:
    await site.client.enqueue(flyte.task(ActionId("q", "d", "secret", "a0")))
    flags = site.limited("q")
    for selected, expected in (
        (Filter(), "q/d/secret/a0\n"),
        (Filter(run="secret"), "q/d/secret/a0\n"),
    ):
        assert await list_actions(flags, selected, output="name") == ExitCode.OK
        assert capfd.readouterr() == (expected, "")
    with pytest.raises(NotFound, match=r"^failed: there is no such run or action$"):
        await list_actions(flags, Filter(run="failed"), output="name")
    with pytest.raises(ServiceRefused, match="may not use project 'p'"):
        await list_actions(flags, Filter(project="p"), output="name")


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    "command",
    [
        ("watch",),
        ("list", "--watch", "--run", "long-running"),
        ("get", "--watch", "long-running/c1"),
        ("runs", "--watch", "--no-counts"),
    ],
    ids=lambda command: command[0],
)
async def test_following(site: Site, tmp_path: Path, command: tuple[str, ...], source: str) -> None:
    """In a process of its own: the present state, then a change, until a signal."""
    name = "long-running" if command[0] == "runs" else "c1"

    def seen(phase: str) -> bool:
        return any(
            phase == row.get("phase") and name in (row.get("action"), row.get("run"))
            for row in process.rows()
        )

    arguments = [*command, "-o", "jsonl", *site.arguments(source)]
    with running(tmp_path, *arguments) as process:
        await process.until(lambda: seen("RUNNING" if name == "long-running" else "QUEUED"))
        await site.status("long-running/c1", Phase.SUCCEEDED)
        await site.status("long-running/a0", Phase.SUCCEEDED)
        await process.until(lambda: seen("SUCCEEDED"))
        process.signal(signal.SIGTERM)
        assert await process.wait() in (0, 128 + signal.SIGTERM), process.err
    assert "Traceback" not in process.err


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
async def test_watch_has_deletions(site: Site, tmp_path: Path, source: str) -> None:
    with running(tmp_path, "watch", "-o", "jsonl", *site.arguments(source)) as process:
        await process.row("SYNCED")
        listed = {(row["run"], row["action"]) for row in process.rows() if row["type"] == "ADDED"}
        assert {("long-running", "c1"), ("failed", "a0")} <= listed
        key = site.keys.task_action(ActionId("p", "d", "long-running", "c1"))
        await site.etcd.delete(KeyRange.of_key(key))
        row = await process.row("DELETED")
        assert (row["run"], row["action"], row["phase"]) == ("long-running", "c1", "ABORTED")
        assert row["revision"] > 0
        process.signal(signal.SIGTERM)
        await process.wait()


@pytest.mark.parametrize("source", SOURCES)
async def test_wait(site: Site, capfd: pytest.CaptureFixture[str], source: str) -> None:
    async def waited(name: str, condition: str = "success", within: float | None = None) -> Any:
        return await output(
            site, capfd, lambda common: wait_for_phase(common, name, condition, within), source
        )

    code, _, err = await waited("failed")
    assert (code, "p/d/failed/a0 is FAILED: Boom" in err) == (ExitCode.RUN_FAILED, True)
    assert (await waited("failed", "terminal"))[0] == ExitCode.OK
    assert (await waited("failed/c1", "phase=failed,aborted"))[0] == ExitCode.OK
    code, _, err = await waited("long-running", "phase=SUCCEEDED", 0.7)
    assert code == ExitCode.TIMEOUT
    assert "it is RUNNING after 0.7 s: --timeout" in err
    results: list[int] = []

    async def wait_until_it_has_ended() -> None:
        results.append(await wait_for_phase(site.common(source), "long-running", "success", None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_until_it_has_ended)
        await site.status("long-running/a0", Phase.SUCCEEDED)
    assert results == [ExitCode.OK]


@pytest.mark.parametrize("source", SOURCES)
async def test_attach(site: Site, capfd: pytest.CaptureFixture[str], source: str) -> None:
    code, out, err = await output(
        site, capfd, lambda common: attach_to_run(common, "failed", "jsonl"), source
    )
    assert code == ExitCode.RUN_FAILED
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["action"]: row["phase"] for row in rows} == {
        "a0": "FAILED",
        "c1": "FAILED",
        "c2": "SUCCEEDED",
    }
    assert rows[-1]["error" if rows[-1]["phase"] == "FAILED" else "phase"]
    assert "run p/d/failed ended as FAILED: Boom: Traceback" in err
    codes: list[int] = []

    async def attach() -> None:
        codes.append(await attach_to_run(site.common(source), "long-running", "table"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(attach)
        await site.status("long-running/c1", Phase.SUCCEEDED)
        await site.status("long-running/a0", Phase.SUCCEEDED)
    out, err = capfd.readouterr()
    assert codes == [ExitCode.OK]
    assert [line.split()[-1] for line in out.splitlines()][-1] == "SUCCEEDED"
    assert "ended as SUCCEEDED" in err


@pytest.mark.parametrize(
    "text", ["", "phase", "phase=", "phase=DONE", "deleted", "phase=unspecified"]
)
def test_no_condition(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--for "):
        phases_of(text)


@pytest.mark.parametrize("text", ["phase=running,PAUSED", "RUNNING,paused"])
def test_phases(text: str) -> None:
    assert phases_of(text) == {Phase.RUNNING, Phase.PAUSED}


@pytest.mark.parametrize("text", ["", "-", "size", "created_at"])
def test_no_sort_key(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--sort-by "):
        sort_key(text)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
async def test_processes_of_their_own(site: Site, source: str) -> None:
    async def run(*arguments: str) -> Finished:
        every = (*arguments, *site.arguments(source))
        return await trio.to_thread.run_sync(partial(finish, *every))

    described = await run("describe", "failed/c1", "long-running")
    assert (described.code, "ValueError: no" in described.out) == (ExitCode.OK, True)
    attached = await run("attach", "p/d/failed")
    assert attached.code == ExitCode.RUN_FAILED
    assert len(attached.out.splitlines()) == 3
    for command in ("describe", "attach", "wait", "tree", "get"):
        unknown = await run(command, "faield")
        assert unknown.code == ExitCode.NOT_FOUND, unknown.err
        assert "faield: there is no such run or action: did you mean failed" in unknown.err
        assert unknown.out == ""
    for path in ("p/d/faield", "q/d/failed"):
        unknown = await run("attach", path)
        assert (unknown.code, "failed" in unknown.err) == (ExitCode.NOT_FOUND, True)


@pytest.mark.slow
@pytest.mark.parametrize("command", [("runs", "-w"), ("attach", "long-running"), ("top",)])
async def test_the_end_of_a_pipes_reader_ends_it(
    site: Site, tmp_path: Path, command: tuple[str, ...]
) -> None:
    """Also while there is nothing to write, and with 0."""
    with running(tmp_path, *command, *site.arguments("etcd"), pipe=True) as process:
        await trio.to_thread.run_sync(process.pipe.readline)
        process.pipe.close()
        assert await process.wait() == 0, process.err
    assert "Traceback" not in process.err


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES)
async def test_what_the_document_shows(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path, source: str
) -> None:
    """The commands of docs/commands.md, in processes of their own."""
    shown = block("docs/commands.md", "console", 0)
    async with open_site(etcd, shared_etcd, prefix, tmp_path) as site:
        await site.put_run("r1", "fit", "score")
        error = ErrorState("Boom", "USER", TRACEBACK)
        for name, phase in (
            ("fit", Phase.FAILED),
            ("score", Phase.SUCCEEDED),
            ("a0", Phase.FAILED),
        ):
            await site.status(f"r1/{name}", phase, error if phase is Phase.FAILED else None)
        await site.recorded("r1", Phase.FAILED.value)
        for command, expected in shown.steps():
            program, *arguments = shlex.split(command)
            assert program == "etcd-actions"
            every = [*arguments, *site.arguments(source)]
            done = await trio.to_thread.run_sync(partial(finish, *every))
            said = [line for line in done.err.splitlines() if not line.startswith("{")]
            printed = [*done.out.splitlines(), *said]
            assert [_as_shown(line) for line in printed] == [_as_shown(line) for line in expected]


def _as_shown(line: str) -> str:
    line = line.replace("flytesnacks", "p").replace("development", "d")
    return " ".join(re.sub(r"\b[0-9]+[smh]\b", "AGE", line).split())
