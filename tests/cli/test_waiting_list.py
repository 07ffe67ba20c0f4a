"""``list -w`` of what does not exist yet: one message with the nearest names, then it waits."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from etcd_actions import Phase
from etcd_actions.etcd.api import Etcd
from tests.cli.command import running
from tests.cli.reading_site import Site, open_site
from tests.support.etcd_server import EtcdServer

SOURCES = ("etcd", "service")

pytestmark = pytest.mark.slow


@pytest.fixture
async def site(
    etcd: Etcd, shared_etcd: EtcdServer, prefix: bytes, tmp_path: Path
) -> AsyncIterator[Site]:
    async with open_site(etcd, shared_etcd, prefix, tmp_path) as site:
        await site.put_run("nightly", "c1")
        yield site


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("selected", "message"),
    [
        (
            ["--run", "nigthly"],
            "no action of nigthly matches yet: waiting for one: did you mean nightly",
        ),
        (
            ["--run", "p/d/nigthly"],
            "no action of p/d/nigthly matches yet: waiting for one: did you mean nightly?",
        ),
        (
            ["--run", "nightly", "--phase", "FAILED"],
            "no action of nightly matches yet: waiting for one",
        ),
        (["--phase", "FAILED"], "no action matches yet: waiting for one"),
    ],
)
async def test_nothing_matches_yet(
    site: Site, tmp_path: Path, source: str, selected: list[str], message: str
) -> None:
    arguments = ["list", "--watch", *selected, "-o", "jsonl", *site.arguments(source)]
    with running(tmp_path, *arguments) as process:
        await process.until(lambda: message in process.err)
        await site.put_run("nigthly", "c1")
        for run in ("nigthly", "nightly"):
            await site.status(f"{run}/c1", Phase.FAILED)
        row = (await process.until(process.rows))[0]
        assert row["run"] in ("nigthly", "nightly")
        process.signal(signal.SIGTERM)
        assert await process.wait() in (0, 128 + signal.SIGTERM)
    said = [line for line in process.err.splitlines() if not line.startswith("{")]
    assert len(said) == 1
    assert said[0].startswith(f"etcd-actions: {message}")


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", ["nightly", "nightly-c1", "nightly/c1", "p/d/nightly"])
async def test_what_exists_needs_no_message(
    site: Site, tmp_path: Path, source: str, name: str
) -> None:
    """The text may also be the name of an action, as without ``-w``."""
    arguments = ["list", "--watch", "--run", name, "-o", "jsonl", *site.arguments(source)]
    with running(tmp_path, *arguments) as process:
        await process.until(lambda: len(process.rows()) == 2)
        process.signal(signal.SIGTERM)
        await process.wait()
    assert {row["action"] for row in process.rows()} == {"a0", "c1"}
    assert [line for line in process.err.splitlines() if not line.startswith("{")] == []
