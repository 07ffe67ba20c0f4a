"""A data directory that is given: the etcd on it is used, or none; never the one on port 2379."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from etcd_actions.cli import options
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.options import CommonOptions
from etcd_actions.config import SETTINGS, Config, Environment, File, Flags, Source, resolve
from etcd_actions.embedded.embedded_etcd import open_embedded_etcd
from etcd_actions.errors import ConfigError, EmbeddedEtcdError
from tests.cli.command import finish
from tests.support.etcd_server import EtcdServer


def given(where: str, directory: Path, tmp_path: Path, *, user: str | None = None) -> CommonOptions:
    """The settings of a command that is told a data directory by a flag, a variable or a file."""
    file = tmp_path / "settings.toml"
    file.write_text(f"data_dir = '{directory}'\n" if where == "file" else "")
    flags = {"data_dir": str(directory)} if where == "flag" else {}
    variables = {"ETCD_ACTIONS_DATA_DIR": str(directory)} if where == "variable" else {}
    if user is not None:
        variables |= {"ETCDCTL_USER": user, "ETCDCTL_PASSWORD": "x"}
    sources: list[Source] = [Flags(flags), Environment(variables), File(file)]
    return CommonOptions(Config(resolve(SETTINGS, sources), None))


WHERE = pytest.mark.parametrize("where", ["flag", "variable", "file"])


@WHERE
def test_without_an_etcd_on_it_no_other_is_used(where: str, tmp_path: Path) -> None:
    """Whether the directory is there or not; the message names both and what to do."""
    directory = tmp_path / "data"
    for _ in range(2):
        with pytest.raises(EmbeddedEtcdError) as caught:
            given(where, directory, tmp_path).endpoints_to_use  # noqa: B018
        assert f"no etcd runs on {directory}" in str(caught.value)
        assert "--endpoints" in str(caught.value)
        directory.mkdir(exist_ok=True)


@WHERE
async def test_the_etcd_on_it_is_used(where: str, tmp_path: Path) -> None:
    async with open_embedded_etcd(tmp_path / "data", client_port=0) as etcd:
        assert given(where, tmp_path / "data", tmp_path).endpoints_to_use == etcd.endpoint
    with pytest.raises(EmbeddedEtcdError):
        given(where, tmp_path / "data", tmp_path).endpoints_to_use  # noqa: B018


@WHERE
def test_with_tls_or_a_user_it_is_an_error_that_names_both(where: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?i)data.dir.* ETCDCTL_USER"):
        given(where, tmp_path / "data", tmp_path, user="u").endpoints_to_use  # noqa: B018


def test_where_none_is_given_etcds_own_default_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("ETCD_ACTIONS_DATA_DIR", raising=False)
    assert given("nowhere", tmp_path, tmp_path).endpoints_to_use == options._DEFAULT_ENDPOINT


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ("list",),
        ("get", "p/d/r1/a0"),
        ("tree", "r1"),
        ("watch",),
        ("record", "-"),
        ("doctor",),
        ("abort", "p/d/r1/a0"),
        ("status", "p/d/r1/a0", "SUCCEEDED"),
        ("signal", "p/d/r1/a0", "true"),
    ],
    ids=lambda command: command[0],
)
async def test_no_command_goes_elsewhere(
    command: tuple[str, ...], tmp_path: Path, shared_etcd: EtcdServer
) -> None:
    """Nor waits for an etcd to come."""
    ended = await trio.to_thread.run_sync(
        lambda: finish(*command, ETCD_ACTIONS_DATA_DIR=str(tmp_path / "data"))
    )
    assert ended.code == ExitCode.EMBEDDED, ended.err
    assert "ETCD_ACTIONS_DATA_DIR" in ended.complaint
