"""``--forks=N``: the collected tests run in N processes that are forked after the collection.

Each worker of pytest-xdist imports and collects all tests, and its controller decodes three reports
a test. Here one process does it for all, and the imported modules are shared. A file is the unit: a
process that has ended a file takes the next one, and so a module's fixtures are made once. All
files that start commands are one unit, since they have one server of commands
(``tests.support.warm``).

For plugins a forked process is a worker of pytest-xdist: its ``config`` has ``workerinput``, and
the process that prints gets its ``workeroutput`` by ``pytest_testnodedown``.
"""

from __future__ import annotations

import itertools
import os
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest
from _pytest import junitxml
from _pytest.tmpdir import TempPathFactory

# Files that import it start commands.
_COMMANDS = "tests.cli.command"
_NUMBER_BYTES = 2


@dataclass(eq=False)
class _Worker:
    """A forked process, in the process that prints; for plugins a node of pytest-xdist."""

    config: pytest.Config
    gateway: SimpleNamespace
    # The line above a failure.
    _workerinfocache: str
    pid: int
    messages: Connection
    taken: set[int] = field(default_factory=set)
    workeroutput: dict[str, object] | None = None


class Forks:
    """The plugin.

    Args:
        count: The number of processes.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._reported: set[str] = set()

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Run the tests in the processes, and report their results here."""
        if session.config.option.collectonly or session.testsfailed or not session.items:
            return None
        files = _units(session.items)
        queue = _queue(len(files))
        workers: list[_Worker] = []
        try:
            for number in range(min(self._count, len(files))):
                workers.append(_fork(session, files, queue, f"fork{number}"))
            self._serve(session, files, workers, queue)
        except BaseException as error:
            for worker in (each for each in workers if each.pid):
                # A Ctrl-C has reached them already.
                if not isinstance(error, KeyboardInterrupt):
                    os.kill(worker.pid, signal.SIGINT)
                os.waitpid(worker.pid, 0)
            raise
        finally:
            os.close(queue)
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if session.shouldstop:
            raise session.Interrupted(session.shouldstop)
        return True

    def _serve(
        self,
        session: pytest.Session,
        files: Sequence[list[pytest.Item]],
        workers: Sequence[_Worker],
        queue: int,
    ) -> None:
        """Take the messages of all workers until each has ended."""
        running = {worker.messages: worker for worker in workers}
        while running:
            for messages in wait(list(running)):
                worker = running[cast(Connection, messages)]
                try:
                    kind, content = worker.messages.recv()
                except EOFError:
                    del running[worker.messages]
                    self._end(worker, files)
                    continue
                if kind == "file":
                    worker.taken.add(content)
                elif kind == "reports":
                    self._report(worker, content)
                else:
                    worker.workeroutput = content
            if session.shouldfail or session.shouldstop:
                while os.read(queue, 1 << 16):
                    pass

    def _report(self, worker: _Worker, reports: list[dict[str, Any]]) -> None:
        hook = worker.config.hook
        for each in reports:
            report = hook.pytest_report_from_serializable(config=worker.config, data=each)
            report.node = worker
            self._reported.add(report.nodeid)
            hook.pytest_runtest_logreport(report=report)

    def _end(self, worker: _Worker, files: Sequence[list[pytest.Item]]) -> None:
        """Reap a worker; the tests that it took and did not end have failed."""
        pid, worker.pid = worker.pid, 0
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        hook = worker.config.hook
        for item in itertools.chain.from_iterable(files[each] for each in worker.taken):
            if code and item.nodeid not in self._reported:
                why = f"not run: {worker.gateway.id} ended with exit code {code}"
                report = pytest.TestReport(
                    item.nodeid, item.location, {}, "failed", why, "call", node=worker
                )
                hook.pytest_runtest_logreport(report=report)
        if worker.workeroutput is None or code:
            raise RuntimeError(f"{worker.gateway.id} ended with exit code {code}")
        hook.pytest_testnodedown(node=worker, error=None)


def _units(items: Sequence[pytest.Item]) -> list[list[pytest.Item]]:
    """The tests that one process runs in a row; the largest number comes first."""
    units: dict[Path | str, list[pytest.Item]] = {}
    for path, tests in itertools.groupby(items, lambda each: each.path):
        unit = _COMMANDS if _COMMANDS in path.read_text() else path
        units.setdefault(unit, []).extend(tests)
    return sorted(units.values(), key=len, reverse=True)


def _queue(count: int) -> int:
    """A pipe with the numbers of all files: a process reads the next one, and then the end."""
    reading, writing = os.pipe()
    os.write(writing, b"".join(each.to_bytes(_NUMBER_BYTES, "big") for each in range(count)))
    os.close(writing)
    return reading


def _fork(
    session: pytest.Session, files: Sequence[list[pytest.Item]], queue: int, name: str
) -> _Worker:
    messages, sending = Pipe(duplex=False)
    base = session.config._tmp_path_factory.getbasetemp() / name  # type: ignore[attr-defined]
    pid = os.fork()
    if pid == 0:
        messages.close()
        _work(session, files, queue, sending, name, str(base))
    sending.close()
    return _Worker(session.config, SimpleNamespace(id=name), f"[{name}]", pid, messages)


def _work(
    session: pytest.Session,
    files: Sequence[list[pytest.Item]],
    queue: int,
    sending: Connection,
    name: str,
    base: str,
) -> NoReturn:
    """Run files until there is no other one, and end this process."""
    code = 3
    try:
        config: Any = session.config
        _become_worker(config, name, base)
        config.pluginmanager.register(_Sender(config, sending), "sender")
        try:
            _run(session, files, queue, sending)
        finally:
            failed = int(session.testsfailed > 0)
            config.hook.pytest_sessionfinish(session=session, exitstatus=failed)
        config._ensure_unconfigure()
        sending.send(("output", config.workeroutput))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _become_worker(config: Any, name: str, base: str) -> None:
    config.workerinput, config.workeroutput = {"workerid": name}, {}
    # What prints and what writes a file is in the other process.
    config.pluginmanager.unregister(name="terminalreporter")
    junitxml.pytest_unconfigure(config)
    # The files into which output is captured would be shared with the others.
    capturing = config.pluginmanager.get_plugin("capturemanager")
    capturing.stop_global_capturing()
    capturing.start_global_capturing()
    capturing.suspend_global_capture()
    config.option.basetemp = base
    config._tmp_path_factory = TempPathFactory.from_config(config, _ispytest=True)


def _run(
    session: pytest.Session, files: Sequence[list[pytest.Item]], queue: int, sending: Connection
) -> None:
    def items() -> Iterator[pytest.Item]:
        while number := os.read(queue, _NUMBER_BYTES):
            at = int.from_bytes(number, "big")
            sending.send(("file", at))
            yield from files[at]

    upcoming = items()
    item = next(upcoming, None)
    while item is not None and not (session.shouldfail or session.shouldstop):
        # The fixtures that the next test uses, too, stay.
        following = next(upcoming, None)
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        item = following


class _Sender:
    """A plugin of a forked process: sends the reports of a test at its end."""

    def __init__(self, config: pytest.Config, sending: Connection) -> None:
        self._config = config
        self._sending = sending
        self._reports: list[object] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep it."""
        self._reports.append(
            self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        )

    def pytest_runtest_logfinish(self) -> None:
        """Send those of the test."""
        self._sending.send(("reports", self._reports))
        self._reports = []
