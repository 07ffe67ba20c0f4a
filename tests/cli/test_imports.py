"""What a command imports: start-up is mostly imports, and one at the wrong place brings many."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_actions.cli.command_line import commands
from etcd_actions.etcd.api import Etcd, Put, Txn
from tests.cli.command import DEADLINE, environment
from tests.cli.here import taskaction
from tests.support.etcd_server import EtcdServer

# Slow to import each, and not needed by every command.
HEAVY = {
    "asyncio",
    "connectrpc",
    "etcd3",
    "flyteidl2",
    "google.protobuf",
    "grpc",
    "msgspec",
    "opentelemetry",
    "prometheus_client",
    "psutil",
    "requests",
    "rich",
    "structlog",
    "tomllib",
    "trio",
    "etcd_actions.config",
    "etcd_actions.etcd.client",
    "etcd_actions.model",
    "etcd_actions.pipeline.processor",
    "etcd_actions.web.listener",
    "etcd_actions.watch",
}

# The process ends without Python's own end, so the list is written just before.
PROGRAM = """
import json, os, sys
leave = os._exit
def left(code):
    with open(os.environ["IMPORTED"], "w") as file:
        json.dump([code, sorted(sys.modules)], file)
    leave(code)
os._exit = left
from etcd_actions.cli import process_main
sys.argv[0] = "etcd-actions"
process_main()
"""


def imported(tmp_path: Path, *arguments: str, **extra: str) -> set[str]:
    """Which of the heavy modules a command imports; it has to succeed."""
    report = tmp_path / "imported"
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment(IMPORTED=str(report), **extra),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    code, modules = json.loads(report.read_text())
    assert code == 0, process.stderr
    assert process.stdout
    return HEAVY.intersection(modules)


@pytest.mark.parametrize("arguments", [("--version",), ("--help",)])
def test_what_needs_no_command_imports_nothing_heavy(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    assert imported(tmp_path, *arguments) == set()


def test_completion_imports_what_the_line_names(tmp_path: Path) -> None:
    def completing(line: str) -> set[str]:
        return imported(
            tmp_path,
            _ETCD_ACTIONS_COMPLETE="bash_complete",
            COMP_WORDS=line,
            COMP_CWORD=str(line.count(" ")),
        )

    assert completing("etcd-actions re") == set()
    settings = {"msgspec", "etcd_actions.config", "etcd_actions.model"}
    assert completing("etcd-actions run --executor-") == settings
    assert imported(tmp_path, "list", "--help") == settings


@pytest.mark.slow
async def test_list_imports_a_transport_and_no_log(
    tmp_path: Path, shared_etcd: EtcdServer, etcd: Etcd, prefix: bytes
) -> None:
    await etcd.txn(Txn([], [Put(prefix + b"flyte/r1-a0", taskaction("r1", "a0", None))]))
    found = imported(
        tmp_path,
        *("list", "--endpoints", shared_etcd.endpoint, "--prefix", prefix.decode(), "-o", "jsonl"),
    )
    assert found == {
        "google.protobuf",
        "msgspec",
        "trio",
        "etcd_actions.config",
        "etcd_actions.etcd.client",
        "etcd_actions.model",
    }


def test_the_summaries_are_the_first_sentences_of_the_help() -> None:
    for name, (_, summary) in commands.locations.items():
        command = commands.load(name)
        assert command.name == name
        assert command.get_short_help_str(200) == summary


@pytest.mark.slow
def test_a_line_of_the_log_looks_as_the_settings_say(
    tmp_path: Path, shared_etcd: EtcdServer
) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "etcd_actions", "list", "--endpoints", shared_etcd.endpoint],
        env=environment(ETCD_ACTIONS_GARCE="1s", ETCD_ACTIONS_LOG_FORMAT="json"),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    (line,) = process.stderr.splitlines()
    assert json.loads(line)["event"] == "unknown_variable"


def test_garbage_is_put_off_in_the_process_and_never_in_the_library() -> None:
    program = (
        "import gc, sys\n"
        "from etcd_actions.cli import process_setup\n"
        "from etcd_actions.cli.parsing.run_async import run_async\n"
        "async def seen(): return gc.isenabled(), gc.get_freeze_count() > 0, gc.get_threshold()\n"
        "print(run_async(seen))\n"
        "process_setup.pause_garbage_collection()\n"
        "print(gc.isenabled(), run_async(seen))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=True,
    )
    library, of_a_command = done.stdout.splitlines()
    assert library == f"(True, False, {gc.get_threshold()})"
    assert of_a_command == "False (True, True, (10000, 20, 20))"
