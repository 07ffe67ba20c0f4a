"""Tasks whose images have packages: real environments, from packages that the test makes."""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.imagebuilder.definition_pb2 import (
    AptPackages,
    Env,
    ImageSpec,
    Layer,
    PipOptions,
    PipPackages,
    Requirements,
)

from etcd_actions import ActionsClient, Phase, open_actions_client
from etcd_actions._internal.containment import Containment
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor import ExecutorSettings, ImageSettings
from etcd_actions.executor.attempts.start_errors import NotStarted
from etcd_actions.executor.images.image_build import find_base
from etcd_actions.executor.images.image_directories import LOCK, complete, sweep_images
from etcd_actions.executor.images.image_environments import (
    ImageEnvironment,
    ImageEnvironments,
    NotBuiltYet,
)
from etcd_actions.images import StoredImage
from tests.executor.tasks import ROOT, Machine, named, until
from tests.executor.wheels import make_wheel
from tests.support.waiting import until_done

pytestmark = pytest.mark.memory(jumps=False)

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        await client.start_watching()
        yield client


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.end_all()


def options(wheels: Path) -> PipOptions:
    return PipOptions(extra_args=f"--no-index --find-links {wheels}")


def image(*layers: Layer, python: str = VERSION, name: str = "n:t") -> StoredImage:
    spec = ImageSpec(base_image="python:3", python_version=python, layers=layers)
    return StoredImage(name=name, spec=spec.SerializeToString())


def packages(wheels: Path, *names: str) -> Layer:
    return Layer(pip_packages=PipPackages(packages=names, options=options(wheels)))


def with_images(settings: ExecutorSettings, *, within: float = 300.0) -> ExecutorSettings:
    images = ImageSettings(
        directory=settings.state_dir / "images", python=settings.python, within=within
    )
    return replace(settings, images=images)


def with_image(machine: Machine, stored: StoredImage, script: str, name: str = "a0") -> Action:
    def change(action: Action) -> None:
        action.task.spec.task_template.container.image = str(stored.reference)

    return machine.task(named(name), script, change=change)


class Cache:
    """The environments of one process."""

    def __init__(
        self, directory: Path, nursery: trio.Nursery, *stored: StoredImage, **settings: float
    ) -> None:
        self.settings = replace(
            ImageSettings(directory=directory, python=Path(sys.executable)),
            **settings,  # type: ignore[arg-type]
        )
        self.definitions = {each.digest: each for each in stored}
        self.environments = ImageEnvironments(self.settings, self._read, nursery, Containment())

    async def _read(self, digest: str) -> StoredImage | None:
        await trio.lowlevel.checkpoint()
        return self.definitions.get(digest)

    async def get(self, stored: StoredImage) -> ImageEnvironment:
        found = await until_done(
            lambda: self.environments.get(str(stored.reference)), despite=NotBuiltYet
        )
        assert found is not None
        return found

    async def fails(self, stored: StoredImage) -> str:
        with pytest.raises(NotStarted) as caught:
            await self.get(stored)
        assert not caught.value.by_machine
        assert caught.value.error.kind == "USER"
        return caught.value.error.message


@pytest.mark.slow
async def test_a_task_has_the_packages_of_its_image_and_the_executors_own(
    client: ActionsClient, machine: Machine, tmp_path: Path
) -> None:
    """The package of the image wins over the executor's of the same name."""
    make_wheel(tmp_path / "wheels", "made_here", "VALUE = 42")
    make_wheel(tmp_path / "wheels", "structlog", "VALUE = 43")
    stored = image(
        packages(tmp_path / "wheels", "made-here", "structlog==1.0"),
        Layer(env=Env(env_variables={"A": "${B}2", "B": "1", "TZ": "UTC"})),
    )
    await client.images.put(stored)
    script = (
        'python -c "import made_here, structlog, msgspec; '
        'print(made_here.VALUE, structlog.VALUE)" >"$RUNS/said" 2>&1; echo "$TZ $B" >>"$RUNS/said"'
    )
    async with machine.executor(client, with_images(machine.settings())) as executor:
        await client.enqueue(with_image(machine, stored, script))
        action = await until(client, ROOT)
        assert action.phase is Phase.SUCCEEDED, action.status.error_state
        assert executor.statistics().retries == 0
    assert (machine.runs / "said").read_text() == "42 43\nUTC 1\n"
    # How long it is in use is said to the next executor by a file.
    (note,) = machine.state_dir.glob("attempts/*/*/image")
    assert (machine.state_dir / "images" / note.read_text() / "ready.json").exists()


async def test_what_cannot_be_had_fails_the_action_and_others_go_on(
    client: ActionsClient, machine: Machine
) -> None:
    stored = image(Layer(apt_packages=AptPackages(packages=["vim"])))
    missing = image(Layer(apt_packages=AptPackages(packages=["emacs"])))
    await client.images.put(stored)
    async with machine.executor(client, with_images(machine.settings())):
        await client.enqueue(with_image(machine, stored, "exit 0", "a1"))
        await client.enqueue(with_image(machine, missing, "exit 0", "a2"))
        await client.enqueue(machine.task(named("a3"), "exit 0"))
        first, second, third = [await until(client, named(each)) for each in ("a1", "a2", "a3")]
    assert third.phase is Phase.SUCCEEDED
    for action, text in ((first, "it installs packages of the system: 'vim'"), (second, "stored")):
        assert action.phase is Phase.FAILED
        assert action.status.error_state is not None
        assert action.status.error_state.code == "ImageNotAvailable"
        assert text in action.status.error_state.message
    assert machine.starts("a1") == machine.starts("a2") == []


async def test_images_are_left_alone_where_that_is_off(
    client: ActionsClient, machine: Machine
) -> None:
    stored = image(Layer(apt_packages=AptPackages(packages=["vim"])))
    async with machine.executor(client):
        await client.enqueue(with_image(machine, stored, "exit 0"))
        assert (await until(client, ROOT)).phase is Phase.SUCCEEDED


async def test_another_python_is_refused_unless_that_is_ignored(tmp_path: Path) -> None:
    stored = image(python="2.7")
    async with trio.open_nursery() as nursery:
        cache = Cache(tmp_path, nursery, stored)
        assert "it has Python 2.7, and the executor Python" in await cache.fails(stored)
        lenient = Cache(tmp_path, nursery, stored)
        lenient.environments._settings = replace(cache.settings, lacking="ignore")
        assert (await lenient.get(stored)).directory is None


@pytest.mark.slow
async def test_what_the_installer_says_is_in_the_error_without_passwords(tmp_path: Path) -> None:
    arguments = f"--no-index --find-links {tmp_path}"
    layer = Layer(
        pip_packages=PipPackages(
            packages=["not-there @ http://me:hunter2@127.0.0.1:1/x-1-py3-none-any.whl"],
            options=PipOptions(extra_args=f"{arguments} --retries 0 --not-an-option"),
        )
    )
    stored = image(layer)
    async with trio.open_nursery() as nursery:
        message = await Cache(tmp_path / "images", nursery, stored).fails(stored)
    assert message.startswith("image n:t: installing its packages failed with exit code 2")
    assert "--not-an-option" in message
    assert "hunter2" not in message
    # Nothing half made is left.
    assert not [each for each in (tmp_path / "images").glob("*/*") if each.is_dir()]


async def test_one_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "made_here", "")
    stored = image(packages(tmp_path / "wheels", "made_here"))
    async with trio.open_nursery() as nursery:
        message = await Cache(tmp_path / "images", nursery, stored, within=0.05).fails(stored)
    assert "took longer than 0.05 s" in message


@pytest.mark.slow
async def test_two_processes_make_one_environment(tmp_path: Path) -> None:
    """Two caches of one directory are what two executors are to each other: a lock apart."""
    make_wheel(tmp_path / "wheels", "made_here", "")
    stored = image(packages(tmp_path / "wheels", "made_here"))
    async with trio.open_nursery() as nursery:
        first, second = (Cache(tmp_path / "images", nursery, stored) for _ in range(2))
        found: list[ImageEnvironment] = []

        async def get(cache: Cache) -> None:
            found.append(await cache.get(stored))

        async with trio.open_nursery() as both:
            both.start_soon(get, first)
            both.start_soon(get, second)
        assert found[0] == found[1]
        assert first.environments.built + second.environments.built == 1


@pytest.mark.slow
async def test_what_a_killed_builder_left_is_never_used(tmp_path: Path) -> None:
    make_wheel(tmp_path / "wheels", "made_here", "")
    stored = image(packages(tmp_path / "wheels", "made_here"))
    async with trio.open_nursery() as nursery:
        cache = Cache(tmp_path / "images", nursery, stored)
        home = (await cache.get(stored)).directory
        assert home is not None
        half = home.rename(home.with_name("half-made"))
        (half.parent / "ready.json").unlink()
        found = (await cache.get(stored)).directory
        assert found is not None
        assert found != half
        assert not half.exists()
        assert cache.environments.built == 2


@pytest.mark.slow
async def test_files_of_an_image_come_from_its_archive(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    make_wheel(wheels, "made_here", "")
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        entry = tarfile.TarInfo("sub/r.txt")
        text = b"made_here==1.0\n"
        entry.size = len(text)
        archive.addfile(entry, io.BytesIO(text))
    context = tmp_path / "context.tar.gz"
    context.write_bytes(data.getvalue())
    layer = Layer(requirements=Requirements(file="sub/r.txt", options=options(wheels)))

    digest = hashlib.sha256(data.getvalue()).hexdigest()
    spec = ImageSpec(layers=[layer]).SerializeToString()
    stored = StoredImage(name="n:t", spec=spec, context_uri=context.as_uri(), context_digest=digest)
    async with trio.open_nursery() as nursery:
        found = (await Cache(tmp_path / "images", nursery, stored).get(stored)).directory
        assert found is not None
        assert list(found.glob("lib/python*/site-packages/made_here.py"))
        context.write_bytes(b"")
        other = Cache(tmp_path / "others", nursery, stored)
        assert "have changed" in await other.fails(stored)
        context.unlink()
        other = Cache(tmp_path / "others", nursery, stored)
        assert "its files are gone: run the program again" in await other.fails(stored)


def ready(home: Path, size: int, age: float) -> Path:
    """What looks like an environment that was used so many seconds ago."""
    directory = home / "0123"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").touch()
    (home / "ready.json").write_text(f'{{"directory": "0123", "bytes": {size}}}')
    (home / "use").touch()
    used = time.time() - age
    os.utime(home / "use", (used, used))
    return home


def test_what_is_unused_for_long_is_removed_and_then_what_is_too_much(tmp_path: Path) -> None:
    homes = {
        name: ready(tmp_path / name, 100, age)
        for name, age in (("old", 1e6), ("older", 9e4), ("newer", 8e4), ("fresh", 10.0))
    }
    removed, failures = sweep_images(tmp_path, keep=5e5, most_bytes=1000)
    assert (removed, failures) == (1, [])
    assert [name for name, home in homes.items() if complete(home)] == ["older", "newer", "fresh"]
    sweep_images(tmp_path, keep=5e5, most_bytes=200)
    assert [name for name, home in homes.items() if complete(home)] == ["newer", "fresh"]
    # What was just used stays, however little may be kept.
    sweep_images(tmp_path, keep=5e5, most_bytes=0)
    assert [name for name, home in homes.items() if complete(home)] == ["fresh"]


async def test_what_is_used_or_made_is_not_removed(tmp_path: Path) -> None:
    used, made = ready(tmp_path / ("a" * 40), 1, 1e6), ready(tmp_path / ("b" * 40), 1, 1e6)
    async with trio.open_nursery() as nursery:
        cache = Cache(tmp_path, nursery)
        with ExitStack() as held, (made / LOCK).open("w") as lock:
            cache.environments.hold(ImageEnvironment(used / "0123", {}), held)
            os.utime(used / "use", (1, 1))
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert sweep_images(tmp_path, keep=1.0, most_bytes=0) == (0, [])
            assert complete(used)
            assert complete(made)
        os.utime(used / "use", (1, 1))
        assert sweep_images(tmp_path, keep=1.0, most_bytes=0) == (2, [])
        with ExitStack() as held, pytest.raises(NotBuiltYet):
            cache.environments.hold(ImageEnvironment(used / "0123", {}), held)


async def test_an_interpreter_that_does_not_run_is_an_error_with_its_words() -> None:
    with pytest.raises(ValueError, match="/bin/false does not run"):
        await find_base(Path("/bin/false"))


async def test_one_that_became_unusable_is_built_again(tmp_path: Path) -> None:
    """Its directory is there, and its interpreter is gone: no action waits for it forever."""
    stored = image(packages(tmp_path / "wheels", "made-here"))
    home = ready(tmp_path / ("a" * 40), 1, 0.0)
    async with trio.open_nursery() as nursery:
        cache = Cache(tmp_path, nursery, stored)
        environments, reference = cache.environments, str(stored.reference)
        environments._ready[stored.digest] = ImageEnvironment(home / "0123", {})
        found = await environments.get(reference)
        assert found is not None
        (home / "0123" / "bin" / "python").unlink()
        with ExitStack() as held, pytest.raises(NotBuiltYet):
            environments.hold(found, held)
        with pytest.raises(NotBuiltYet):
            await environments.get(reference)
        assert stored.digest in environments._builds
        nursery.cancel_scope.cancel()
