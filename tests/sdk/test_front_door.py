"""The stock SDK and its command, through their own front door, on an etcd and a folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.command import ROOT
from tests.executor.wheels import make_wheel
from tests.sdk.door import Door, open_door
from tests.support.documents import block
from tests.support.etcd_server import EtcdServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def door(
    etcd_server: EtcdServer, tmp_path_factory: pytest.TempPathFactory, sdk_python: Path
) -> Iterator[Door]:
    """One service for all programs: each has a project of its own."""
    directory = tmp_path_factory.mktemp("door")
    # Another file's tests may have one on the same etcd.
    prefix = f"/front-{directory.name}/".encode()
    with open_door(directory, etcd_server.endpoint, prefix, sdk_python) as door:
        yield door


def test_a_program_comes_to_its_result(door: Door) -> None:
    told = door.run("hello.py", project="hello")
    assert told == {
        "outputs": ["0, 2, 4, 6"],
        "inputs": {"count": 4},
        "phase": "ActionPhase.SUCCEEDED",
        "task": "hello.main",
        "has_url": True,
        "failure": True,
        "done": True,
        "attempts": 1,
    }


def test_a_fan_out_of_500(door: Door) -> None:
    assert door.run("fan_out.py", "500", project="fan") == {
        "sum": sum(each * each for each in range(500)),
        "actions": 501,
        "phases": ["ActionPhase.SUCCEEDED"],
        "groups": ["", "squares"],
    }


def test_files_and_directories(door: Door) -> None:
    assert door.run("files.py", project="files") == {"text": "SOME TEXT", "count": 3}


def test_inputs_of_many_types(door: Door) -> None:
    assert door.run("shapes.py", project="shapes") == {
        "end": 4.0,
        "keys": ["first", "k"],
        "said": "None ['red', 'blue'] 1 b 90",
    }


def test_a_cached_result_is_used_by_another_run(door: Door) -> None:
    assert door.run("cached.py", project="cached") == {"hit": True, "overwritten": True}


def test_a_condition_is_signalled_from_outside(door: Door) -> None:
    assert door.run("condition.py", project="condition") == {"outputs": ["True 12"]}


def test_a_run_is_aborted_in_the_middle(door: Door) -> None:
    assert door.run("abort.py", project="abort") == {
        "phase": "ActionPhase.ABORTED",
        "reason": "enough",
        "raised": True,
        "phases": ["ActionPhase.ABORTED"],
    }


def test_a_task_starts_a_run(door: Door) -> None:
    assert door.run("nested.py", project="nested") == {"text": "cba", "own": True, "listed": True}


def test_a_deployed_task_is_found_and_run(door: Door) -> None:
    assert door.run("deployed.py", project="deployed") == {
        "sum": 6,
        "within": 15,
        "listed": ["v2"],
        "latest": "v2",
    }


def test_a_run_is_run_again(door: Door, tmp_path: Path) -> None:
    told = door.run("again.py", str(tmp_path / "flag"), project="again")
    assert told == {"failed": True, "again": True, "other": True}


def test_code_in_several_folders(door: Door, tmp_path: Path) -> None:
    told = door.run("packages_main.py", str(tmp_path / "code"), project="packages")
    assert told == {"outputs": ["HEY!"], "code": True, "at": True}


def test_packages_of_an_image(door: Door, tmp_path: Path) -> None:
    """The first run has its environment made; what cannot be had is refused before a run."""
    make_wheel(tmp_path, "made_here", "VALUE = 42")
    told = door.run("packaged.py", str(tmp_path), project="packaged")
    assert told == {"values": [42, 42], "refused": True}


def test_a_report(door: Door) -> None:
    assert door.run("report.py", project="report") == {"report": True}


def test_the_remote_builder_makes_the_image_of_a_task(door: Door, tmp_path: Path) -> None:
    """And what cannot be had is told in the user's terminal, before the run is there."""
    make_wheel(tmp_path / "wheels", "made_here", "VALUE = 42")
    told = door.run("images.py", "pip", str(tmp_path / "wheels"), project="images")
    assert told == {"outputs": ["42"], "runs": ["build-image", "images.main"]}
    told = door.run("images.py", "apt", str(tmp_path / "wheels"), project="apt")
    refused = told.pop("refused")
    assert told == {"runs": []}
    assert "installs packages of the system: 'vim'" in refused
    assert "omit with_apt_packages()" in refused


def test_what_a_run_is_given_besides_inputs(door: Door) -> None:
    told = door.run("context.py", "a-run-of-mine", project="context")
    taken, long = told.pop("taken"), told.pop("long")
    assert told == {
        "outputs": ["green"],
        "name": True,
        "labelled": True,
        "other": True,
        "attempts": ["it rained", ""],
    }
    assert "a-run-of-mine" in taken
    assert "at most 30" in long


def test_what_the_terminal_interface_asks_for(door: Door) -> None:
    assert door.run("tui.py", project="tui") == {
        "projects": True,
        "runs": 2,
        "succeeded": [True],
        "named": 2,
        "aborted": "ActionPhase.ABORTED",
        "actions": 2,
        "tasks": ["tui.main"],
        "apps": 0,
        "triggers": 0,
        "log": True,
        "log_of_action": True,
    }


@pytest.mark.parametrize("document", ["README.md", "docs/tutorial.md"])
def test_the_program_that_a_newcomer_copies(door: Door, tmp_path: Path, document: str) -> None:
    text = (ROOT / document).read_text()
    program = next(each for each in re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    port = f":{door.port}"
    (tmp_path / "hello.py").write_text(program.replace(":8091", port))
    connection = ("--insecure", "--project", "mine", "--domain", "development")
    flyte = str(door.python.with_name("flyte"))
    made = door.finish(
        flyte, "create", "config", "--endpoint", door.endpoint, *connection, cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    done = door.finish(str(door.python), "hello.py", cwd=tmp_path)
    assert done.stdout.split()[-1:] == ["30"], f"{done.stdout}\n{done.stderr}\n{door.tail()}"
    listed = door.finish(flyte, "get", "run", cwd=tmp_path)
    assert "hello.main" in listed.stdout, listed.stderr


def test_the_commands_that_a_newcomer_copies(door: Door, tmp_path: Path) -> None:
    """Those of the tutorial, one after another, on the run of its program."""
    (tmp_path / "hello.py").write_text(
        block("docs/tutorial.md", "python").text.replace(":8091", f":{door.port}")
    )
    done = door.finish(str(door.python), "hello.py", cwd=tmp_path)
    run = done.stdout.split()[-2]
    for number in (0, 1):
        for command in block("docs/tutorial.md", "console", number).commands():
            program, *arguments = command
            words = [run if each == "RUN" else each for each in arguments]
            words = [each.replace(":8091", f":{door.port}") for each in words]
            path = str(door.python.with_name(Path(program).name))
            done = door.finish(path, *words, cwd=tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{door.tail()}"


def test_the_connection_that_the_documents_show(door: Door, tmp_path: Path) -> None:
    """The arguments are those that the SDK has; nothing is there to connect to."""
    shown = block("docs/front-door.md", "python").text
    (tmp_path / "shown.py").write_text(
        "import inspect, flyte\n"
        "signature = inspect.signature(flyte.init)\n"
        f"flyte.init = signature.bind\n{shown}"
    )
    done = door.finish(str(door.python), "shown.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_command(door: Door) -> None:
    """Run, look, read the log, abort, deploy, run what is deployed, run again."""
    program = "hello.py"
    door.flyte("run", "--name", "by-command", program, "main", "--count", "2", project="command")
    again = door.flyte("run", "--follow", program, "main", project="command")
    assert "doubling 3 numbers" in again
    runs = door.flyte("get", "run", project="command")
    assert "by-command" in runs
    assert "hello.main" in runs
    for phase, there in (("succeeded", True), ("failed", False)):
        listed = door.flyte("get", "run", "--in-phase", phase, project="command")
        assert ("by-command" in listed) is there, listed
    assert "by-command" in door.flyte("get", "run", "--only-mine", project="command")
    actions = door.flyte("get", "action", "by-command", project="command")
    assert "hello.double" in actions
    assert "doubling 2 numbers" in door.flyte("get", "logs", "by-command", project="command")
    assert "0, 2" in door.flyte("get", "io", "by-command", project="command")
    door.flyte("deploy", "--version", "v7", program, "env", project="command")
    assert "hello.main" in door.flyte("get", "task", project="command")
    door.flyte("run", "deployed-task", "hello.main", "--count", "1", project="command")
    door.flyte("rerun", "by-command", project="command")
    assert "command" in door.flyte("get", "project")
    assert "anonymous" in door.flyte("whoami")
    door.flyte("run", "--name", "to-abort", "abort.py", "main", project="command")
    door.flyte("abort", "run", "to-abort", project="command")
    aborted = door.flyte("get", "run", "--in-phase", "aborted", project="command")
    assert "to-abort" in aborted


def test_projects_are_created_changed_and_archived(door: Door) -> None:
    named = ("--name", "A new one", "--description", "To try it", "-l", "team=vision")
    assert "created" in door.flyte("create", "project", "--id", "brand-new", *named)
    shown = door.flyte("get", "project", "brand-new")
    for each in ("A new one", "To try it", "team: vision", "PROJECT_STATE_ACTIVE"):
        assert each in shown
    assert "brand-new" in door.flyte("get", "project")
    again = door.flyte("create", "project", "--id", "brand-new", "--name", "x", code=1)
    assert "'brand-new' exists" in again
    door.flyte("update", "project", "brand-new", "--description", "Tried", "--archive")
    assert "brand-new" not in door.flyte("get", "project")
    shown = door.flyte("get", "project", "--archived")
    assert "A new one" in shown
    assert "Tried" in shown
    door.flyte("update", "project", "brand-new", "--unarchive")
    assert "brand-new" in door.flyte("get", "project")
