"""Secrets of tasks: given as variables, kept nowhere, and refused in words that say what to do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flyteidl2.actions.actions_service_pb2 import Action
from flyteidl2.core.security_pb2 import Secret

from etcd_actions import ActionsClient, Phase, open_actions_client
from etcd_actions._internal.secret_sources import (
    SecretSource,
    SecretUnavailable,
    parse_secret_sources,
)
from etcd_actions.etcd.api import Etcd, KeyRange
from tests.executor.tasks import ROOT, Machine, until
from tests.support.everyday import first_everyday
from tests.support.table import table

pytestmark = pytest.mark.memory(jumps=False)

VALUE = "hunter2-of-the-test"


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


def asking(machine: Machine, script: str, *secrets: Secret) -> Action:
    def change(action: Action) -> None:
        action.task.spec.task_template.security_context.secrets.extend(secrets)

    return machine.task(ROOT, script, change=change)


async def test_a_task_gets_its_secrets_and_nobody_else_does(
    client: ActionsClient,
    machine: Machine,
    etcd: Etcd,
    prefix: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HELD_BY_THE_SERVICE", f"{VALUE}-1")
    (tmp_path / "secret").write_text(f"{VALUE}-2\n")
    sources = parse_secret_sources(
        f"api-key=env:HELD_BY_THE_SERVICE,g/other=file:{tmp_path}/secret,unused=env:HOME"
    )
    script = 'printf %s "$API_KEY $G_OTHER ${UNUSED-none} ${HELD_BY_THE_SERVICE-none}" | wc -c'
    script += f' >"$RUNS/said"; [ "$API_KEY" = {VALUE}-1 ] && [ "$G_OTHER" = {VALUE}-2 ]'
    settings = replace(machine.settings(), secrets=sources)
    async with machine.executor(client, settings):
        env = Secret.ENV_VAR
        await client.enqueue(
            asking(
                machine,
                script.replace(VALUE, VALUE[:4] + '""' + VALUE[4:]),
                Secret(key="api-key", mount_requirement=env, env_var="API_KEY"),
                Secret(group="g", key="other"),
            )
        )
        action = await until(client, ROOT)
    assert action.phase is Phase.SUCCEEDED, action.status.error_state
    assert int((machine.runs / "said").read_text()) == 2 * len(VALUE) + 2 * 2 + 3 + 2 * 4
    files = [each for each in machine.state_dir.rglob("*") if each.is_file()]
    assert files
    assert not [each for each in files if VALUE.encode() in each.read_bytes()]
    found = await etcd.range(KeyRange.of_prefix(prefix))
    assert found.kvs
    assert not [each for each in found.kvs if VALUE.encode() in each.value]


@pytest.mark.parametrize(
    ("secret", "text"),
    first_everyday(
        [
            (Secret(key="none"), "--secret none=env:VARIABLE or --secret none=file:PATH"),
            (Secret(group="g", key="there"), "--secret g/there=env:VARIABLE"),
            (Secret(key="gone"), "the secret 'gone': file /not/there: No such file or directory"),
            (Secret(key="unset"), "the service's environment has no NOT_SET_ANYWHERE"),
            (Secret(key="there", mount_requirement=Secret.FILE), "as_env_var"),
            (Secret(key="there", env_var="_U_EP_OVERRIDE"), "give another with as_env_var"),
            (Secret(key="there", env_var="A=B"), "give another with as_env_var"),
        ]
    ),
)
async def test_a_secret_that_is_not_to_be_had_fails_the_action_at_once(
    client: ActionsClient, machine: Machine, secret: Secret, text: str
) -> None:
    sources = parse_secret_sources("there=env:HOME,gone=file:/not/there,unset=env:NOT_SET_ANYWHERE")
    settings = replace(machine.settings(), secrets=sources)
    async with machine.executor(client, settings):
        await client.enqueue(asking(machine, "exit 0", secret))
        action = await until(client, ROOT)
    assert action.phase is Phase.FAILED
    assert action.status.error_state is not None
    assert action.status.error_state.code == "SecretNotAvailable"
    assert action.status.error_state.kind == "USER"
    assert text in action.status.error_state.message
    assert machine.starts("a0") == []


@pytest.mark.parametrize("content", [f"{VALUE}\0".encode(), f"{VALUE}".encode() + b"\xff"])
def test_an_error_has_nothing_of_the_value(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    with pytest.raises(SecretUnavailable) as caught:
        SecretSource("a", "file", str(tmp_path / "secret")).read()
    assert VALUE not in str(caught.value)
    assert VALUE not in repr(caught.value.__cause__)
    (tmp_path / "secret").write_text(VALUE * 10_000)
    with pytest.raises(SecretUnavailable, match="at most 65536 bytes") as caught:
        SecretSource("a", "file", str(tmp_path / "secret")).read()
    assert VALUE not in str(caught.value)


def test_the_end_of_a_line_is_no_part_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a\nb\r\n", newline="")
    assert SecretSource("a", "file", str(tmp_path / "secret")).read() == "a\nb"


@table(
    "text",
    [
        f"name={VALUE}",
        VALUE,
        f"a=env:B,c={VALUE}",
        f"a=env:{VALUE}",
        f"a=file:{VALUE}",
        "a=env:B,a=env:C",
        "",
    ],
)
def test_a_mapping_that_is_none_is_refused_without_being_shown(text: str) -> None:
    """Who gives the value itself by mistake does not find it in a log."""
    with pytest.raises(ValueError, match=r"entry|twice") as caught:
        parse_secret_sources(text)
    assert VALUE not in str(caught.value)
