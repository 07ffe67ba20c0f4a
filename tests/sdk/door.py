"""A service with its executor, and the SDK and its command as a person uses them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from tests.cli.command import Running
from tests.sdk.service import Site, free_port

PROGRAMS: Final = Path(__file__).parent / "front_programs"
_LONGEST: Final = 180.0


class Door:
    """A service with its executor, and what reaches it from outside."""

    def __init__(self, site: Site, port: int, service: Running, python: Path) -> None:
        self.site = site
        self.service = service
        self.port = port
        self.python = python
        self.home = site.directory / "home"
        self.home.mkdir()

    @property
    def endpoint(self) -> str:
        """What the SDK is given."""
        return f"http://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        """What a person's shell has, and nothing of ours."""
        return {
            "PATH": f"{self.python.parent}:/usr/bin:/bin",
            "HOME": str(self.home),
            "COLUMNS": "200",
            "LANG": "C.UTF-8",
        }

    def run(self, program: str, *arguments: str, project: str = "p") -> dict[str, Any]:
        """Run a program to its end, and give what it printed last."""
        return self.print_and_result(program, *arguments, project=project)[1]

    def print_and_result(
        self, program: str, *arguments: str, project: str = "p"
    ) -> tuple[str, dict[str, Any]]:
        """Run a program to its end, and give all that it printed, and its last line."""
        done = self.finish(
            str(self.python), str(PROGRAMS / program), self.endpoint, project, *arguments
        )
        assert done.returncode == 0, (
            f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}\n{self.tail()}"
        )
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return done.stdout, result

    def flyte(self, *arguments: str, project: str = "p", code: int = 0) -> str:
        """Run the command ``flyte``, and give what it printed."""
        command = str(self.python.with_name("flyte"))
        done = self.finish(command, "--config", str(self.configuration(project)), *arguments)
        assert done.returncode == code, (
            f"exit code {done.returncode}\n{done.stdout}\n{done.stderr[-6000:]}\n{self.tail()}"
        )
        return done.stdout + done.stderr

    def configuration(self, project: str) -> Path:
        """What a person writes once, and then the command needs no flags."""
        path = self.site.directory / f"{project}.yaml"
        path.write_text(
            f"admin:\n  endpoint: {self.endpoint}\n  insecure: true\n"
            f"image:\n  builder: remote\n"
            f"task:\n  project: {project}\n  domain: development\n"
        )
        return path

    def tail(self) -> str:
        """The end of the service's log."""
        return self.service.err[-6000:]

    def finish(self, *command: str, cwd: Path = PROGRAMS) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; the SDK takes code from the working directory."""
        return subprocess.run(
            command,
            env=self.environment(),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_LONGEST,
            check=False,
        )


@contextmanager
def open_door(
    directory: Path,
    endpoint: str,
    prefix: bytes,
    python: Path,
    *options: str,
    executor: tuple[str, ...] = ("--executor", "local"),
) -> Iterator[Door]:
    """Serve below a prefix, for as long as the context lasts; clients and tasks have ``python``."""
    site = Site(directory, endpoint, prefix, python)
    site.executor = executor
    port = free_port()
    with ExitStack() as stack:
        stack.callback(site.end_all)
        service = stack.enter_context(
            site.service(
                port, "--blob-dir", str(directory / "blobs"), "--executor-slots", "8", *options
            )
        )
        until = time.monotonic() + 60
        while not service.logs("serving"):
            assert service.process.poll() is None, service.err
            assert time.monotonic() < until, service.err
            time.sleep(0.05)
        yield Door(site, port, service, python)
