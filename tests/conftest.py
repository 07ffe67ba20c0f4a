"""Fixtures of all tests: an etcd for the session, and a connection with a prefix of one's own.

Where a test's etcd runs is up to ``--etcd``, as in every suite with ``etcd_actions.testing``.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import cast

import hypothesis
import pytest
import structlog
import trio
import trio.testing
from trio.abc import Clock, Instrument

from etcd_actions import open_etcd
from etcd_actions.etcd.api import Etcd
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.testing import EtcdFactory, EtcdServer, MemoryStore, Order, OwnEtcd
from etcd_actions.testing.plugin import MAY_PULL, requested_etcd
from tests.support.budget import Budget
from tests.support.conformance import ConformanceTable
from tests.support.everyday import EVERYDAY, EXAMPLES, first_everyday
from tests.support.forks import Forks
from tests.support.warm import close_server

pytest_plugins = ["etcd_actions.testing", "pytester"]

# Python is started hundreds of times: what it has compiled is kept, also where the environment
# says not to, as those of container images do.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Nothing that is imported or collected is garbage: a fifth of the time of the collection.
gc.disable()

_numbers = itertools.count()


# The marks of all tests of a file, and those that the everyday suite leaves out.
_MARKS = re.compile(r"^pytestmark = (\[\n.*?^\]|[^\n]*)", re.MULTILINE | re.DOTALL)
_SLOW = re.compile(r"pytest\.mark\.(slow|faults)\b")

# What comes first in memory, answers or events: with the other order tests may find other things.
_ORDER = cast(Order, os.environ.get("ETCD_ACTIONS_TEST_ORDER", "answers_first"))

# A test that has one of these, itself or through others, runs where --etcd says.
_FOLLOWING = {"etcd_server", "etcd_factory", "conformance_etcd", "etcd_or_memory"}
# One that has one of these has sockets, which a clock that jumps does not wait for.
_REAL = {"shared_etcd", "own_etcd", "etcd_server", "etcd_factory"}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--follows-etcd`` and ``--forks``."""
    parser.getgroup("etcd").addoption(
        "--follows-etcd",
        action="store_true",
        help="run only the tests for which --etcd makes a difference",
    )
    parser.getgroup("xdist").addoption(
        "--forks",
        type=int,
        default=0,
        metavar="N",
        help="run the tests file by file in N processes that are forked after the collection",
    )


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """In the everyday suite, do not even import a file whose tests are all left out."""
    if config.getoption("markexpr") != EVERYDAY or not collection_path.name.startswith("test_"):
        return None
    if collection_path.suffix != ".py":
        return None
    found = _MARKS.search(collection_path.read_text())
    return True if found is not None and _SLOW.search(found[0]) else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Pass the time of tests in memory; leave out what starts an etcd of a fixed kind, or none."""
    for item in items:
        if _is_in_memory(item) and _jumps(item):
            item.add_marker(pytest.mark.trio(run=_run_autojumping))
    if config.getoption("--follows-etcd"):
        follows = [not _FOLLOWING.isdisjoint(getattr(each, "fixturenames", ())) for each in items]
        others = [each for each, does in zip(items, follows, strict=True) if not does]
        config.hook.pytest_deselected(items=others)
        items[:] = [each for each, does in zip(items, follows, strict=True) if does]


def _is_in_memory(item: pytest.Item) -> bool:
    """Whether a test has no etcd but the one in memory."""
    names = set(getattr(item, "fixturenames", ()))
    spec = getattr(item, "callspec", None)
    if spec is not None and spec.params.get("conformance_transport") == "memory":
        return True
    if item.get_closest_marker("memory") is None or item.get_closest_marker("network") is not None:
        return False
    return not requested_etcd(item.config) and not names & _REAL


def _jumps(item: pytest.Item) -> bool:
    """Whether time may be passed while all tasks of a test wait, which they do for each other."""
    marker = item.get_closest_marker("memory")
    alone = marker is None or marker.kwargs.get("jumps", True)
    return alone and inspect.iscoroutinefunction(getattr(item, "obj", None))


def _run_autojumping(
    main: Callable[[], Awaitable[object]],
    *,
    clock: Clock | None,
    instruments: Sequence[Instrument],
) -> object:
    """``trio.run`` on a clock that jumps while all tasks wait."""
    clock = clock or trio.testing.MockClock(autojump_threshold=0)
    return trio.run(main, clock=clock, instruments=instruments)


def pytest_configure(config: pytest.Config) -> None:
    """Keep logs out of the tests' output; those who look at them use capture_logs."""

    def drop(*_: object) -> structlog.typing.EventDict:
        raise structlog.DropEvent

    structlog.configure(processors=[drop])
    # Shared machines stall: a slow example is no finding.
    hypothesis.settings.register_profile("many", deadline=None)
    hypothesis.settings.register_profile("everyday", deadline=None, max_examples=EXAMPLES)
    is_everyday = "not slow" in config.getoption("markexpr")
    hypothesis.settings.load_profile("everyday" if is_everyday else "many")
    config.addinivalue_line(
        "markers", "conformance: what every transport promises, on every etcd at hand"
    )
    config.addinivalue_line(
        "markers",
        "memory(jumps=True): runs on the etcd in memory, where --etcd does not ask for a real "
        "one; the clock jumps while all tasks wait, unless they wait for threads",
    )
    config.addinivalue_line(
        "markers",
        "bulk: moves megabytes, or thousands of events; over the gateway, where each byte costs "
        "the most, that is no test of the everyday suite",
    )
    config.addinivalue_line(
        "markers", "network: has sockets, and so a real etcd, beside tests that run in memory"
    )
    config.pluginmanager.register(ConformanceTable(), "conformance-table")
    config.pluginmanager.register(Budget(), "budget")
    if forks := config.getoption("forks"):
        config.pluginmanager.register(Forks(forks), "forks")
    config.stash[MAY_PULL] = False
    if is_everyday:
        # One processor, and garbage that is collected later: a third less for each call.
        os.environ.setdefault("GOMAXPROCS", "1")
        os.environ.setdefault("GOGC", "400")


def pytest_unconfigure() -> None:
    """End the server of commands."""
    close_server()


def pytest_collection_finish() -> None:
    """Keep the collected tests, and all that they import, out of the collections of garbage."""
    gc.collect()
    # From 3.14 on Hypothesis does not find who refers to its generator when that is frozen.
    if sys.version_info < (3, 14):
        gc.freeze()
    gc.enable()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Note in reports which etcd a test ran on."""
    if call.when == "call" and isinstance(item, pytest.Function):
        etcds = [each for each in item.funcargs.values() if isinstance(each, EtcdServer | OwnEtcd)]
        item.user_properties += [("etcd", where) for where in {etcd.where for etcd in etcds}]
        versions = {str(etcd.version) for etcd in etcds if isinstance(etcd, EtcdServer)}
        item.user_properties += [("etcd-version", version) for version in versions]


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept in the user's data directory where nothing is said is kept elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data-home")))
        yield


@pytest.fixture(scope="session")
def shared_etcd(etcd_server: EtcdServer) -> EtcdServer:
    """An etcd for all tests that neither stop it nor compact it."""
    return etcd_server


@pytest.fixture
def own_etcd(etcd_factory: EtcdFactory) -> OwnEtcd:
    """An etcd of the test's own."""
    return etcd_factory()


@pytest.fixture
def killable_etcd(own_etcd: OwnEtcd) -> OwnEtcd:
    """An etcd of the test's own whose version survives being killed."""
    if not own_etcd.may_be_killed:
        pytest.skip(f"etcd {own_etcd.version} loses acknowledged writes when it is killed")
    return own_etcd


@pytest.fixture(params=first_everyday(["grpc", "gateway"]))
def transport(request: pytest.FixtureRequest) -> TransportName:
    """Each way to talk to etcd: a test that uses it runs once with each.

    That both behave alike is up to the conformance suite, which has both in the everyday suite.
    """
    return cast(TransportName, request.param)


@pytest.fixture
def memory() -> MemoryStore:
    """An etcd in memory of the test's own, as the test servers are."""
    return MemoryStore(order=_ORDER, least_ttl=1)


@pytest.fixture
def etcd_or_memory(request: pytest.FixtureRequest) -> EtcdServer | MemoryStore:
    """For tests marked ``memory`` that, unless ``--etcd`` asks for a real one; else the shared."""
    if _is_in_memory(request.node):
        return cast(MemoryStore, request.getfixturevalue("memory"))
    return cast(EtcdServer, request.getfixturevalue("shared_etcd"))


@pytest.fixture
async def etcd(etcd_or_memory: EtcdServer | MemoryStore) -> AsyncIterator[Etcd]:
    """A connection to an etcd that is neither stopped nor compacted."""
    if isinstance(etcd_or_memory, MemoryStore):
        yield etcd_or_memory.client()
        return
    async with open_etcd(etcd_or_memory.endpoint) as connection:
        yield connection


@pytest.fixture
def prefix() -> bytes:
    """A key prefix that no other test uses, also where they share an etcd with --etcd."""
    # Processes that run tests side by side may have one etcd.
    return f"/test-{os.getpid()}-{next(_numbers)}/taskactions/".encode()
