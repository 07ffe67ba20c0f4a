"""The virtual environments of images: one for each definition, built once, kept for some time.

One builder at a time, of all processes, locks the directory of a definition. Each build has a
directory of its own. A file that is renamed into place names the complete one, so that no
incomplete environment is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from subprocess import SubprocessError
from typing import Final

import structlog
import trio

from etcd_actions._internal.containment import Containment
from etcd_actions._internal.untrusted_files import UnusableFile, local_path, read_regular
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.executor.attempts.attempt_command import Command
from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.executor.attempts.start_errors import NotStarted, is_of_machine
from etcd_actions.executor.executor_settings import ImageSettings
from etcd_actions.executor.images.image_build import (
    PYTHON,
    SDK_PROGRAM,
    Base,
    BuildFailed,
    build,
    find_base,
)
from etcd_actions.executor.images.image_directories import (
    LOCK,
    USE,
    complete,
    open_lock,
    prepare_home,
    publish,
    read_context,
    size_of,
    sweep_images,
)
from etcd_actions.executor.removal import remove
from etcd_actions.images import (
    Definition,
    ImageReference,
    StoredImage,
    parse_image,
    parse_reference,
    refusal,
    unsupported_parts,
)
from etcd_actions.images.unsupported import own_variables

CODE: Final = "ImageNotAvailable"
UNIT: Final = "image"
"""The kind of unit of an image, see :mod:`etcd_actions._internal.containment`."""

NOTE: Final = "image"
"""The file of an attempt's directory that names its environment."""

_HOME: Final = re.compile(r"[0-9a-f]{40}")
_BUILDS_AT_ONCE: Final = 2
# Seconds between two looks at a build: at first, and at most.
_LOOK_FIRST: Final = 0.1
_LOOK_LAST: Final = 3.0
# Seconds for which a failed build is the error of each further action.
_FAILED_FOR: Final = 30.0
# Seconds between removals of old environments, and until the first one.
_SWEEP_EVERY: Final = 3600.0
_FIRST_SWEEP: Final = 300.0
_MOST_KNOWN: Final = 10_000

_log = structlog.get_logger(__name__)


ReadImage = Callable[[str], Awaitable[StoredImage | None]]
"""Reads a stored definition by its digest; returns None if there is none."""


@dataclass(frozen=True)
class ImageEnvironment:
    """The environment of an image.

    Attributes:
        directory: The virtual environment; None if the image installs nothing.
        variables: The variables of the image; those of the task override them.
    """

    directory: Path | None
    variables: Mapping[str, str]

    def applied_to(self, command: Command) -> Command:
        """The command, run in this environment."""
        arguments, environment = command.arguments, dict(command.environment)
        if self.directory is None:
            return command
        programs = str(self.directory / "bin")
        environment["PATH"] = f"{programs}{os.pathsep}{environment['PATH']}"
        environment.setdefault("VIRTUAL_ENV", str(self.directory))
        if command.is_sdk:
            own = [str(self.directory / PYTHON), str(self.directory / SDK_PROGRAM)]
            arguments = [*own, *arguments[1:]]
        return replace(command, arguments=arguments, environment=environment)


class NotBuiltYet(Exception):
    """An environment is being built; retry after ``again`` seconds."""

    def __init__(self, again: float) -> None:
        super().__init__("the environment of its image is being built")
        self.again = again


@dataclass
class _Build:
    began: float
    failure: NotStarted | None = None
    failed_at: float = 0.0


@dataclass
class _Use:
    descriptor: int
    count: int = 0


class ImageEnvironments:
    """The environments on this machine; its builds run in a nursery.

    Args:
        settings: See :class:`ImageSettings`.
        read: See :data:`ReadImage`.
        nursery: Runs the builds.
        containment: The boundary of each build.

    Attributes:
        built: Number of environments that were built.
    """

    def __init__(
        self,
        settings: ImageSettings,
        read: ReadImage,
        nursery: trio.Nursery,
        containment: Containment,
    ) -> None:
        self._settings = settings
        self._read = read
        self._nursery = nursery
        self._containment = containment
        self._builds: dict[str, _Build] = {}
        self._ready: dict[str, ImageEnvironment] = {}
        self._uses: dict[Path, _Use] = {}
        self._at_once = trio.CapacityLimiter(_BUILDS_AT_ONCE)
        self._base: Base | None = None
        self.built = 0

    async def get(self, image: str) -> ImageEnvironment | None:
        """The environment of a container's image; None if the image has no stored definition.

        Raises:
            NotBuiltYet: It is being built.
            NotStarted: It cannot be built; the action fails with the error.
            EtcdError: The definition cannot be read now.
        """
        reference = parse_reference(image)
        if reference is None:
            return None
        digest = reference.digest
        found = self._ready.get(digest)
        if found is not None and (found.directory is None or found.directory.is_dir()):
            return found
        self._ready.pop(digest, None)
        running, now = self._builds.get(digest), trio.current_time()
        if running is not None:
            if running.failure is None:
                waited = now - running.began
                raise NotBuiltYet(min(max(waited / 4, _LOOK_FIRST), _LOOK_LAST))
            if now - running.failed_at < _FAILED_FOR:
                raise running.failure
        stored, definition = await read_definition(self._read, reference)
        # Another task may have started a build during the read.
        if digest not in self._builds or self._builds[digest].failure is not None:
            self._builds[digest] = _Build(now)
            self._nursery.start_soon(self._provide, reference, stored, definition)
        raise NotBuiltYet(_LOOK_FIRST)

    async def applied(
        self, image: str, command: Callable[[Mapping[str, str]], Command], held: ExitStack
    ) -> Command | None:
        """See :meth:`~etcd_actions.executor.provisions.Images.applied`.

        Raises:
            NotBuiltYet, NotStarted, EtcdError: See :meth:`get`.
        """
        found = await self.get(image)
        if found is None:
            return None
        applied = found.applied_to(command(found.variables))
        self.hold(found, held)
        return applied

    def hold(self, image: ImageEnvironment, held: ExitStack) -> None:
        """Keep an environment from being removed by any executor, until the stack is closed.

        Raises:
            NotBuiltYet: It was removed.
            OSError: It cannot be locked.
        """
        if image.directory is None:
            return
        home = image.directory.parent
        if not self._holds(home, held) or complete(home) != image.directory:
            # Its directory may exist, and not be usable: the next call of `get` builds it again.
            self._ready = {d: each for d, each in self._ready.items() if each is not image}
            raise NotBuiltYet(_LOOK_FIRST)

    def hold_noted(self, place: AttemptDirectory, held: ExitStack) -> None:
        """Hold the environment of an attempt that another executor started."""
        with suppress(FileNotFoundError, UnusableFile, ValueError):
            name = read_regular(place.path / NOTE, limit=64).decode("ascii")
            if _HOME.fullmatch(name):
                self._holds(self._settings.directory / name, held)

    def note(self, image: str, place: AttemptDirectory) -> None:
        """Store which environment an attempt uses, see :meth:`hold_noted`."""
        reference = parse_reference(image)
        found = None if reference is None else self._ready.get(reference.digest)
        if found is not None and found.directory is not None:
            with suppress(FileExistsError), (place.path / NOTE).open("x") as file:
                file.write(found.directory.parent.name)

    def _holds(self, home: Path, held: ExitStack) -> bool:
        if home not in self._uses:
            descriptor = open_lock(home / USE)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
                os.utime(descriptor)
            except BaseException as error:
                os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    return False
                raise
            self._uses[home] = _Use(descriptor)
        self._uses[home].count += 1
        held.callback(self._release, home)
        return True

    def _release(self, home: Path) -> None:
        use = self._uses[home]
        use.count -= 1
        if not use.count:
            del self._uses[home]
            os.close(use.descriptor)

    async def _provide(
        self, reference: ImageReference, stored: StoredImage, definition: Definition
    ) -> None:
        """Build an environment in its boundary, and store it, or the failure, for later calls."""
        running = self._builds[reference.digest]
        failure: NotStarted | None = None
        with self._containment.unit(UNIT, str(reference)) as unit:
            try:
                found = await self._environment_of(reference, stored, definition)
            except NotStarted as error:
                failure = error
            except BuildFailed as error:
                failure = refused(reference, str(error))
            except OSError as error:
                if not is_of_machine(error):
                    raise
                failure = refused(reference, str(error), by_machine=True)
            else:
                if len(self._ready) >= _MOST_KNOWN:
                    self._ready.clear()
                self._ready[reference.digest] = found
                del self._builds[reference.digest]
                return
        if failure is None:
            failure = refused(reference, f"it cannot be made: {unit.error}")
        else:
            _log.warning("image_not_built", image=str(reference), error=str(failure))
        running.failure, running.failed_at = failure, trio.current_time()
        # Later runs retry; forget old failures.
        if len(self._builds) > _MOST_KNOWN:
            self._builds = {k: v for k, v in self._builds.items() if v.failure is None}

    async def _environment_of(
        self, reference: ImageReference, stored: StoredImage, definition: Definition
    ) -> ImageEnvironment:
        """The environment of an image, which is built unless a complete one exists.

        Raises:
            NotStarted, BuildFailed, OSError: It cannot be built.
        """
        if self._base is None:
            try:
                self._base = await find_base(self._settings.python)
            except ValueError as error:
                raise BuildFailed(str(error)) from error
        base = self._base
        problems = unsupported_parts(definition, base.version, has_uv=base.uv is not None)
        if problems and self._settings.lacking == "check":
            raise BuildFailed(refusal(reference.name, problems))
        variables = own_variables(definition)
        if not definition.steps:
            return ImageEnvironment(None, variables)
        home = self._settings.directory / _key(reference.digest, base)
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = open_lock(home / LOCK)
        try:
            await _locked(lock)
            directory = complete(home)
            if directory is None:
                async with self._at_once:
                    directory = await self._build(home, reference, stored, definition, base)
        finally:
            os.close(lock)
        return ImageEnvironment(directory, variables)

    async def _build(
        self,
        home: Path,
        reference: ImageReference,
        stored: StoredImage,
        definition: Definition,
        base: Base,
    ) -> Path:
        """Build an environment; the caller has the lock of its home."""
        await trio.to_thread.run_sync(prepare_home, home)
        context = await self._context(stored) if definition.needs_context else None
        directory = home / secrets.token_hex(8)
        directory.mkdir(mode=0o700)
        began, complete = trio.current_time(), False
        try:
            await build(definition, context, directory, base, self._settings.within)
            size = await trio.to_thread.run_sync(size_of, directory, abandon_on_cancel=True)
            if size > self._settings.most_bytes:
                raise BuildFailed(
                    f"its packages take {size} bytes: more than --image-bytes "
                    f"{self._settings.most_bytes} allows"
                )
            publish(home, directory, size)
            complete = True
        finally:
            if not complete:
                with trio.CancelScope(shield=True), suppress(OSError, SubprocessError):
                    await trio.to_thread.run_sync(remove, directory)
        self.built += 1
        seconds = round(trio.current_time() - began, 1)
        _log.info("image_built", image=str(reference), seconds=seconds, bytes=size)
        return directory

    async def _context(self, stored: StoredImage) -> bytes:
        path = local_path(stored.context_uri)
        if path is None:
            raise BuildFailed(
                f"its files are at {stored.context_uri[:200]!r}, which is not on this machine: "
                "use with_pip_packages()"
            )
        try:
            data = await trio.to_thread.run_sync(read_context, path, abandon_on_cancel=True)
        except (FileNotFoundError, NotADirectoryError, UnusableFile) as error:
            raise BuildFailed(f"its files are gone: run the program again: {error}") from error
        if hashlib.sha256(data).hexdigest() != stored.context_digest:
            raise BuildFailed(f"its files at {path} have changed: run the program again")
        return data

    async def keep_clean(self) -> None:
        """Remove environments that are unused for long, or exceed the bytes; does not return."""
        every = max(min(_SWEEP_EVERY, self._settings.keep / 4), 1.0)
        # First the executor has to find the attempts of earlier executors, which use environments.
        await trio.sleep(min(_FIRST_SWEEP, every))
        while True:
            removed, failures = await trio.to_thread.run_sync(
                sweep_images,
                self._settings.directory,
                self._settings.keep,
                self._settings.most_bytes,
            )
            for path, error in failures:
                with self._containment.unit(UNIT, str(path)):
                    raise error
            if removed:
                _log.info("images_removed", count=removed)
            await trio.sleep(every)


async def read_definition(
    read: ReadImage, reference: ImageReference
) -> tuple[StoredImage, Definition]:
    """The stored definition of an image.

    Raises:
        NotStarted: There is none, or it cannot be decoded.
        EtcdError: It cannot be read now.
    """
    try:
        stored = await read(reference.digest)
        if stored is None:
            raise refused(reference, "its definition is not stored: run the program again")
        return stored, parse_image(stored.spec)
    except (DecodeError, InvalidArgument) as error:
        raise refused(reference, str(error)) from error


def refused(reference: ImageReference, why: str, *, by_machine: bool = False) -> NotStarted:
    """The error of an action whose image cannot be used."""
    message = why if why.startswith("image ") else f"image {reference.name}: {why}"
    return NotStarted.because(message, by_machine=by_machine, code=CODE)


def _key(digest: str, base: Base) -> str:
    text = "\n".join(("1", digest, str(base.python), base.version, *base.packages))
    return hashlib.sha256(text.encode()).hexdigest()[:40]


async def _locked(lock: int) -> None:
    """Wait for a lock that another process may have."""
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await trio.sleep(_LOOK_FIRST)
        else:
            return
