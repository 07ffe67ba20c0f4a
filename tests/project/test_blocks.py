"""Each code block of README and docs/ is run, or says why it is not.

A block is run by a test of this file, or by the one that the comment before it names::

    <!-- run by: tests/project/test_readme.py::test_the_library_program -->

Else the comment gives one of `REASONS`. The commands of all blocks have to be real ones.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import pytest
import trio
import trustme

from etcd_actions import (
    ActionId,
    ActionStatus,
    NotFound,
    Phase,
    open_actions_client,
    open_etcd,
)
from etcd_actions.cli.command_line import commands
from etcd_actions.cli.flags import Command
from etcd_actions.config import SETTINGS
from etcd_actions.model.earlier_attempts import EarlierAttempt
from etcd_actions.server.tokens import Tokens
from etcd_actions.testing import EtcdServer, OwnEtcd
from tests.cli.command import environment, finish
from tests.support.documents import ROOT, Block, block, blocks
from tests.support.flyte import condition, task
from tests.support.table import table

# Why a block is not run, and what has to be in it for that to be so.
REASONS = {
    "a figure": r"──",
    "a key": r"^/registry/",
    "an error's text": r"permission denied",
    "it installs from the network": r"pip install",
    "it serves until it is ended": r"etcd-actions run\b|scripts/run\b",
    "it takes minutes": r"scripts/|scripts\.bench|\.ci/run",
    "it needs the SDK and the network": r"with_pip_packages",
    "it needs grpcurl": r"^\$ grpcurl",
    "it needs root": r"^useradd ",
    "it needs a cluster": r"^(kubectl|sbatch|nomad) ",
    "it needs a Ray cluster": r"--ray-address",
}

# Programs of others, whose arguments are not looked at.
OTHERS = {
    *("cp", "docker", "etcd", "etcdctl", "export", "flyte", "grpcurl", "jq", "kubectl", "nomad"),
    *("sbatch", "systemctl", "useradd"),
}

RUN: set[Block] = set()

Test = TypeVar("Test", bound=Callable[..., Any])


def runs(document: str, language: str, number: int = 0) -> Callable[[Test], Test]:
    """Give a test the block that it runs, as ``shown``."""
    shown = block(document, language, number)
    RUN.add(shown)

    def decorate(test: Test) -> Test:
        marked: Test = pytest.mark.parametrize("shown", [shown], ids=[shown.where])(test)
        return marked

    return decorate


@table("each", blocks(), ids=lambda each: each.where)
def test_a_block_is_run_or_says_why_not(each: Block) -> None:
    kind, _, text = each.note.partition(": ")
    if each in RUN:
        assert kind not in ("run by", "not run"), "a test of this file runs it"
    elif kind == "run by":
        path, _, name = text.partition("::")
        source = (ROOT / path).read_text()
        assert Path(each.document).name in source
        assert f"def {name}(" in source
    else:
        assert kind == "not run", "no test runs it, and it does not say why"
        assert re.search(REASONS[text], each.text, re.MULTILINE)


def test_each_reason_is_given_somewhere() -> None:
    notes = [each.note.partition(": ") for each in blocks()]
    assert {text for kind, _, text in notes if kind == "not run"} == set(REASONS)


SHELL = [each for each in blocks() if each.language in ("sh", "console")]


@table("each", SHELL, ids=lambda each: each.where)
def test_its_commands_are_there_and_take_these_arguments(each: Block) -> None:
    for program, *arguments in each.commands():
        name = Path(program).name
        if name == "etcd-actions":
            _parse(arguments)
        elif program.startswith(("scripts/", ".ci/")):
            assert os.access(ROOT / program, os.X_OK), program
            _check_flags(program, arguments)
        elif name == "pip":
            _check_install(arguments)
        elif name in ("python", "python3"):
            _check_python(each, arguments)
        else:
            assert name in OTHERS, program


def _parse(arguments: list[str]) -> None:
    """As click does before the command runs.

    Raises:
        click.UsageError: There is no such command, flag or argument.
    """
    group: click.Command = commands
    context = click.Context(commands, info_name="etcd-actions")
    while isinstance(group, click.Group):
        name, command, arguments = group.resolve_command(context, arguments)
        assert command is not None
        group, context = command, click.Context(command, parent=context, info_name=name)
    if isinstance(group, Command):
        # A truth value alone is true.
        arguments = list(group._with_truth_values(arguments))
    # The parser looks at no values: a file that is not here is no mistake of the document.
    _, rest, _ = group.make_parser(context).parse_args(list(arguments))
    wanted = [each for each in group.params if isinstance(each, click.Argument)]
    assert len(rest) <= len(wanted) or any(each.nargs == -1 for each in wanted), rest


def _check_flags(program: str, arguments: list[str]) -> None:
    """A script's own flags are in its source, or in that of what it starts."""
    if program == "scripts/test":
        return  # pytest's
    if program == "scripts/run":
        _parse(["run", *arguments])
        return
    folders = (ROOT / "scripts", ROOT / "tests" / "schedules")
    sources = [path.read_text() for folder in folders for path in folder.rglob("*.py")]
    sources.append((ROOT / program).read_text())
    for flag in (each for each in arguments if each.startswith("--")):
        assert any(flag in source for source in sources), flag


def _check_install(arguments: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for each in (each for each in arguments if each.startswith("etcd-actions")):
        named = re.fullmatch(r"etcd-actions\[([\w,]+)\]", each)
        assert named is not None
        assert set(named[1].split(",")) <= set(extras)


def _check_python(each: Block, arguments: list[str]) -> None:
    if arguments[0] == "-m":
        assert importlib.util.find_spec(arguments[1]) is not None
        return
    folder = (ROOT / each.document).parent
    named = f"# {arguments[0]}\n"
    programs = [other for other in blocks() if other.document == each.document]
    assert (
        (folder / arguments[0]).is_file()
        or any(other.text.startswith(named) for other in programs)
        or "trio.run(main" in "".join(other.text for other in programs)
    )


def test_commands_are_found_as_a_shell_finds_them() -> None:
    shown = Block("x.md", 1, "sh", "A=b one 'two three' # no\nfour && five | six < in\n", "")
    assert list(shown.commands()) == [["one", "two three"], ["four"], ["five"], ["six"]]
    shown = Block("x.md", 1, "console", "$ one \\\n  two\nprinted\n", "")
    assert list(shown.commands()) == [["one", "two"]]


@pytest.mark.parametrize(
    "line", ["etcd-actions rum", "etcd-actions run --no-such-flag", "etcd-actions list a b c"]
)
def test_a_command_that_there_is_not_is_found(line: str) -> None:
    with pytest.raises((click.UsageError, AssertionError)):
        _parse(line.split()[1:])


def printed(expected: list[str], lines: list[str]) -> None:
    """Each line that a document shows was printed, in order, but for its white space; … is any."""
    rest = iter([" ".join(line.split()) for line in lines])
    for line in expected:
        if line != "…":
            assert any(" ".join(line.split()) == other for other in rest), (line, lines)


@runs("docs/configuration.md", "console")
def test_config_show(shown: Block) -> None:
    ((command, expected),) = shown.steps()
    variable, name, *arguments = command.split()
    assert name == "etcd-actions"
    key, value = variable.split("=")
    done = finish(*arguments, **{key: value})
    assert done.code == 0
    printed(expected, done.out.splitlines())


@runs("docs/configuration.md", "toml")
def test_a_file_with_settings(shown: Block, tmp_path: Path) -> None:
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    for name in ("worker.password", "tokens"):
        (tmp_path / name).write_text("x\n")
        (tmp_path / name).chmod(0o600)
    file = tmp_path / "etcd-actions.toml"
    file.write_text(shown.text.replace("/etc/etcd-actions", str(tmp_path)))
    done = finish("config", "show", "--config", file, "--output", "jsonl")
    assert done.code == 0, done.err
    rows = {row["flag"]: row for row in map(json.loads, done.out.splitlines())}
    flags = {each.name: each.flag for each in SETTINGS}
    for key in tomllib.loads(shown.text):
        assert rows[flags[key]]["source"] not in ("default", "")


ROOT_ACTION = ActionId("flytesnacks", "development", "r1", "a0")


@pytest.mark.slow
@runs("docs/commands.md", "console", 1)
async def test_commands_that_change_something(
    shown: Block, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    """Each in its turn; the last one, on a service, is that before it."""
    request = tmp_path / "root.json"
    request.write_text(_as_json(task(ROOT_ACTION)))
    env = {"ETCDCTL_ENDPOINTS": shared_etcd.endpoint, "ETCD_ACTIONS_PREFIX": prefix.decode()}
    *steps, (last, _) = shown.steps()
    assert last == steps[-1][0].split(" --reason")[0] + " --service actions.example.org:8091"
    approve = msgspec.structs.replace(ROOT_ACTION, name="approve")
    async with (
        open_etcd(shared_etcd.endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix) as client,
    ):
        for command, expected in steps:
            if " signal " in command:
                await client.enqueue(condition(approve, "a0"))
            done = await trio.run_process(
                [
                    "bash",
                    "-c",
                    command.replace("etcd-actions", f"{sys.executable} -m etcd_actions"),
                ],
                cwd=tmp_path,
                env=environment(**env),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            printed(expected, done.stderr.decode().splitlines())
        assert (await client.get_task_action(approve)).phase is Phase.SUCCEEDED
        root = await client.get_task_action(ROOT_ACTION)
    assert root.phase is Phase.ABORTED


def _as_json(message: Any) -> str:
    from google.protobuf.json_format import MessageToJson  # noqa: PLC0415 - where it is needed

    return MessageToJson(message)


@pytest.mark.slow
@runs("docs/doctor.md", "sh")
def test_doctor(shown: Block, shared_etcd: EtcdServer, tmp_path: Path) -> None:
    """Examined, and filtered by jq where that is installed."""
    first, second = shown.text.strip().splitlines()
    first = re.sub(r"(?<=--endpoints )\S+", shared_etcd.endpoint, first)
    program = f"{sys.executable} -m etcd_actions"
    done = _bash(first.replace("etcd-actions", program), tmp_path, shared_etcd)
    assert done.returncode in (0, 8), done.stderr
    done = _bash(second.partition(" | ")[0].replace("etcd-actions", program), tmp_path, shared_etcd)
    found = json.loads(done.stdout)
    if subprocess.run(["bash", "-c", "command -v jq"], capture_output=True, check=False).returncode:
        pytest.skip("jq is not installed")
    filtered = _bash(second.replace("etcd-actions", program), tmp_path, shared_etcd)
    errors = [each["remedy"] for each in found["findings"] if each["severity"] == "error"]
    assert filtered.stdout.splitlines() == errors


def _bash(line: str, folder: Path, etcd: EtcdServer) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=environment(ETCDCTL_ENDPOINTS=etcd.endpoint),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@runs("docs/record-format.md", "python")
async def test_a_record_is_read_by_msgpack(
    shown: Block, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> None:
    async with (
        open_etcd(shared_etcd.endpoint) as etcd,
        open_actions_client(etcd, prefix=prefix) as client,
    ):
        await client.enqueue(task(ROOT_ACTION))
        await client.put_status(ROOT_ACTION, 1, ActionStatus(Phase.RUNNING))
    where = ("--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode())
    done = finish("record", tmp_path / "run.rec", "--until-synced", *where)
    assert done.code == 0, done.err
    read = subprocess.run(
        [sys.executable, "-c", shown.text], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    revision, entries = map(int, read.stdout.split())
    assert revision > 0
    assert entries >= 2  # the object, and that all is there


async def _run_part(text: str, **names: object) -> None:
    """Run a part of a program, in which these names mean something."""
    lines = "import trio\nfrom pathlib import Path\nfrom etcd_actions import *\n"
    body = textwrap.indent(text.replace("...", "await trio.lowlevel.checkpoint()"), "    ")
    scope: dict[str, Any] = dict(names)
    exec(f"{lines}async def part():\n{body}", scope)
    with trio.fail_after(30):
        await scope["part"]()


@runs("docs/run-service.md", "python")
async def test_a_client_with_a_run_service(shown: Block, shared_etcd: EtcdServer) -> None:
    """Nothing is listening there, which is not needed before there is something to report."""
    await _run_part(shown.text, endpoint=shared_etcd.endpoint)


@runs("docs/api.md", "python")
async def test_the_error_of_a_body_comes_out_as_it_is(
    shown: Block, shared_etcd: EtcdServer
) -> None:
    text = shown.text.replace("127.0.0.1:2379", shared_etcd.endpoint)
    with pytest.raises(NotFound):
        await _run_part(text, action_id=ActionId("p", "d", "no-such-run", "a0"))


@runs("README.md", "python", 2)
async def test_a_connection_with_tls_and_a_user(shown: Block) -> None:
    """Nothing is opened before it is entered, so the arguments alone are tried."""
    await _run_part(shown.text)


@runs("docs/front-door.md", "text")
def test_a_file_with_tokens(shown: Block, tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(shown.text.replace("...", "0" * 16))
    file.chmod(0o600)
    tokens = Tokens(file)
    whole = {
        token[:6]: token for token in re.findall(r"^[0-9a-f]+", file.read_text(), re.MULTILINE)
    }
    alice = tokens.find(whole["81be7d"])
    assert alice is not None
    assert (alice.subject, alice.projects) == ("alice", frozenset({"vision", "speech"}))
    everyone = tokens.find(whole["3f9c0a"])
    assert everyone is not None
    assert everyone.projects is None


@runs("docs/status.md", "json")
def test_the_errors_of_earlier_attempts(shown: Block) -> None:
    (found,) = msgspec.json.decode(shown.text, type=list[EarlierAttempt])
    assert (found.attempt, found.code) == (1, "ValueError")


@pytest.mark.slow
@runs("examples/README.md", "sh")
def test_an_example_on_an_etcd_of_its_own(shown: Block, own_etcd: OwnEtcd) -> None:
    """It prints the command that it waits for."""
    start, line = shown.text.strip().splitlines()
    assert start == 'etcd --data-dir "$(mktemp -d)" &'
    program, name, endpoint = line.split()
    assert (program, endpoint) == ("python", "127.0.0.1:2379")
    process = subprocess.Popen(
        [sys.executable, name, own_etcd.endpoint],
        cwd=ROOT / "examples",
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("etcd-actions signal ")
        finally:
            process.send_signal(signal.SIGKILL)
