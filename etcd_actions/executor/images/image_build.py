"""Installs the packages of an image into a virtual environment, with uv if it is available.

Packages that the image does not install, such as the SDK, are those of the executor's environment.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import trio

from etcd_actions._internal.untrusted_files import UnusableFile, read_end, read_regular
from etcd_actions.executor.attempts.environment import helper_environment
from etcd_actions.images import Definition, IndexOptions, Packages, Project, Requirements, Step
from etcd_actions.images.unsupported import arguments_of_sync

PYTHON: Final = Path("bin", "python")
SDK_PROGRAM: Final = Path("bin", "a0")
BUILD_LOG: Final = "build.log"
CONTEXT: Final = "context"

# Runs of the installer, if each fails because of the network.
_NETWORK_TRIES: Final = 4
# Seconds before the first retry; each later one doubles.
_FIRST_DELAY: Final = 1.0
_LAST_LINES: Final = 20
_LAST_BYTES: Final = 8192
_MOST_UNPACKED: Final = 1 << 30
_MOST_PROJECT: Final = 1 << 20
# The variables of the service that an installer gets in addition to those of helpers.
_INSTALLERS: Final = ("PIP_", "UV_")
_NETWORK_NAMES: Final = frozenset(
    {"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_DIR", "SSL_CERT_FILE"}
)
# These would make the installer use another directory.
_OTHER_DIRECTORY: Final = frozenset(
    {"PIP_PREFIX", "PIP_PYTHON", "PIP_ROOT", "PIP_TARGET", "PIP_USER", "UV_PROJECT_ENVIRONMENT"}
)
_NETWORK: Final = re.compile(
    r"(?i)connection (?:error|refused|reset|aborted|timed out|broken)|timed? ?out|dns error|"
    r"name resolution|name or service not known|network is unreachable|max retries exceeded|"
    r"error sending request|failed to fetch|temporarily unavailable|50[234] |incomplete ?read"
)
_PASSWORD: Final = re.compile(r"(?<=://)[^/@\s'\"]+@")
_SDK_PROGRAM_TEXT: Final = """\
import sys

from flyte._bin.runtime import main

sys.exit(main())
"""
_REPORT_OF_BASE: Final = """\
import importlib.util, json, sys, sysconfig
places = [sysconfig.get_path(each) for each in ("purelib", "platlib")]
has_pip = importlib.util.find_spec("pip") is not None
print(json.dumps([places, "%d.%d" % sys.version_info[:2], has_pip]))
"""


class BuildFailed(Exception):
    """An image cannot be installed; the message has the end of the installer's output.

    Attributes:
        by_network: Whether a retry may help, since an index of packages could not be reached.
    """

    def __init__(self, message: str, *, by_network: bool = False) -> None:
        super().__init__(message)
        self.by_network = by_network


@dataclass(frozen=True)
class Base:
    """The environment below those of images.

    Attributes:
        python: Its interpreter.
        packages: The directories of its packages.
        version: Its version, such as ``3.12``.
        has_pip: Whether pip is one of its packages.
        uv: The program ``uv``, if it is available.
    """

    python: Path
    packages: tuple[str, ...]
    version: str
    has_pip: bool
    uv: Path | None


async def find_base(python: Path) -> Base:
    """Have an interpreter report the directories of its packages.

    Raises:
        OSError: It cannot be run.
        ValueError: Its report cannot be read.
    """
    done: subprocess.CompletedProcess[bytes] = await trio.run_process(
        [python, "-I", "-c", _REPORT_OF_BASE],
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=helper_environment(),
    )
    if done.returncode:
        raise ValueError(f"{python} does not run: {done.stderr.decode(errors='replace')[-500:]}")
    places, version, has_pip = json.loads(done.stdout)
    return Base(python, tuple(dict.fromkeys(places)), version, has_pip, find_uv(python))


def find_uv(python: Path) -> Path | None:
    """The program ``uv``: next to an interpreter, or on the PATH."""
    directories = [str(python.parent), str(Path(sys.executable).parent)]
    found = shutil.which(
        "uv", path=os.pathsep.join([*directories, os.environ.get("PATH", os.defpath)])
    )
    return None if found is None else Path(found)


async def build(
    definition: Definition, context: bytes | None, directory: Path, base: Base, within: float
) -> None:
    """Build the environment of an image.

    A cancellation kills the installer's processes, and leaves an incomplete directory.

    Args:
        definition: The image.
        context: The archive of the files that its layers name, if any.
        directory: The environment; it exists and is empty.
        base: The environment below it.
        within: The most seconds.

    Raises:
        BuildFailed: It cannot be built.
        OSError: The machine lacks space, memory, descriptors or processes.
    """
    with (directory / BUILD_LOG).open("xb") as log:
        builder = _Builder(directory, base, log)
        with trio.move_on_after(within) as scope:
            await builder.create()
            if context is not None:
                await trio.to_thread.run_sync(_unpack, context, directory / CONTEXT)
            for step in definition.steps:
                await builder.install(step)
        if scope.cancelled_caught:
            raise BuildFailed(
                f"installing it took longer than {within:g} s; the output ends with:\n"
                f"{last_lines(directory)}"
            )
    shutil.rmtree(directory / CONTEXT, ignore_errors=True)


def last_lines(directory: Path, most: int = _LAST_BYTES) -> str:
    """The last lines of the installer's output, of at most so many bytes, without passwords."""
    if most <= 0:
        return ""
    try:
        data = read_end(directory / BUILD_LOG, min(most, _LAST_BYTES))
    except (OSError, UnusableFile) as error:
        return f"(its output cannot be read: {error})"
    lines = data.decode(errors="replace").splitlines()[-_LAST_LINES:]
    return _PASSWORD.sub("***@", "\n".join(lines))


class _Builder:
    def __init__(self, directory: Path, base: Base, log: IO[bytes]) -> None:
        self._directory = directory
        self._base = base
        self._log = log
        self._environment = _environment()
        # The installer's program and first arguments.
        self._installer: list[str] = []

    async def create(self) -> None:
        """Make an environment without packages of its own, which finds those of the base."""
        python, uv = self._base.python, self._base.uv
        target = str(self._directory)
        if uv is not None:
            # The directory has our log in it.
            options = ["--no-project", "--allow-existing", "--python", str(python)]
            await self._run([str(uv), "venv", *options, target], "uv venv")
            self._installer = [str(uv), "pip", "install", "--python", str(self._python)]
        else:
            # The environment finds the pip of the base.
            options = ["--without-pip"] if self._base.has_pip else []
            await self._run([str(python), "-I", "-m", "venv", *options, target], "python -m venv")
            usual = ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
            self._installer = [str(self._python), "-I", "-m", "pip", "install", *usual]
        (packages,) = self._directory.glob("lib/python*/site-packages")
        lines = [f"import site; site.addsitedir({each!r})\n" for each in self._base.packages]
        (packages / "_etcd_actions_base.pth").write_text("".join(lines))
        (self._directory / SDK_PROGRAM).write_text(_SDK_PROGRAM_TEXT)

    async def install(self, step: Step) -> None:
        context = self._directory / CONTEXT
        options = self._options(step.options)
        if isinstance(step, Packages):
            await self._install([*options, *step.requirements], "installing its packages")
        elif isinstance(step, Requirements):
            arguments = [*options, "-r", str(context / step.file)]
            await self._install(arguments, f"installing {step.file}")
        elif isinstance(step, Project):
            await self._install_project(step)
        else:
            wheels = str(context / step.directory)
            arguments = [*options, "--find-links", wheels, step.package]
            await self._install(arguments, f"installing {step.package}")

    async def _install_project(self, step: Project) -> None:
        directory = self._directory / CONTEXT / step.directory
        plain = IndexOptions(
            step.options.index_url, step.options.extra_index_urls, step.options.pre
        )
        options, what = self._options(plain), f"installing the project in {step.directory}"
        if step.lock and self._base.uv is not None:
            lock = self._directory / CONTEXT / step.lock
            if lock.parent != directory:
                shutil.copyfile(lock, directory / "uv.lock")
            listed = str(self._directory / CONTEXT / "locked.txt")
            await self._run(
                [
                    *(str(self._base.uv), "export", "--frozen", "--no-emit-project"),
                    *("--python", str(self._python), "--project", str(directory)),
                    *("--output-file", listed, *arguments_of_sync(step)),
                ],
                f"reading {step.lock}",
            )
            await self._install([*options, "-r", listed], what)
        elif dependencies := _dependencies(directory / "pyproject.toml"):
            await self._install([*options, *dependencies], what)
        if step.installs_itself:
            await self._install([*options, str(directory)], what)

    def _options(self, options: IndexOptions) -> list[str]:
        arguments = ["--index-url", options.index_url] if options.index_url else []
        for each in options.extra_index_urls:
            arguments += ["--extra-index-url", each]
        if options.pre:
            arguments += ["--prerelease", "allow"] if self._base.uv is not None else ["--pre"]
        return arguments + shlex.split(options.extra_args)

    @property
    def _python(self) -> Path:
        return self._directory / PYTHON

    async def _install(self, arguments: Sequence[str], what: str) -> None:
        """Run the installer; retry failures of the network a few times."""
        tries = 0
        while True:
            try:
                await self._run([*self._installer, *arguments], what)
            except BuildFailed as failure:
                tries += 1
                if not failure.by_network or tries == _NETWORK_TRIES:
                    raise
                await trio.sleep(_FIRST_DELAY * 2 ** (tries - 1))
            else:
                return

    async def _run(self, arguments: Sequence[str], what: str) -> None:
        begins = self._log.seek(0, os.SEEK_END)
        done: subprocess.CompletedProcess[bytes] = await trio.run_process(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            check=False,
            env=self._environment,
            cwd=self._directory,
            start_new_session=True,
            deliver_cancel=_kill_group,
        )
        if done.returncode == 0:
            return
        output = last_lines(self._directory, self._log.seek(0, os.SEEK_END) - begins)
        raise BuildFailed(
            f"{what} failed with exit code {done.returncode}"
            + (f"; the output ends with:\n{output}" if output else ""),
            by_network=bool(_NETWORK.search(output)),
        )


async def _kill_group(process: trio.Process) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    passed_on = {
        name: value
        for name, value in os.environ.items()
        if (name.startswith(_INSTALLERS) or name.upper() in _NETWORK_NAMES)
        and name not in _OTHER_DIRECTORY
    }
    return helper_environment() | passed_on | {"PYTHONDONTWRITEBYTECODE": "1"}


def _unpack(archive: bytes, directory: Path) -> None:
    """Unpack the files of an image's layers, none outside of the directory."""
    directory.mkdir()
    try:
        with tarfile.open(fileobj=io.BytesIO(archive), mode="r:*") as files:
            total = 0
            for member in files:
                total += member.size
                if total > _MOST_UNPACKED:
                    raise BuildFailed(f"its files take more than {_MOST_UNPACKED} bytes")
                files.extract(member, directory, filter="data")
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise BuildFailed(f"its files cannot be unpacked: {error}") from error


def _dependencies(path: Path) -> list[str]:
    try:
        text = read_regular(path, limit=_MOST_PROJECT).decode()
        found = tomllib.loads(text).get("project", {}).get("dependencies", [])
    except (FileNotFoundError, UnusableFile, ValueError) as error:
        raise BuildFailed(f"{path.name} cannot be read: {error}") from error
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise BuildFailed(f"{path.name}: project.dependencies is not a list of texts")
    return found
