"""Inputs, outputs and links, of actions of all kinds and of clients of all kinds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from flyteidl2.common.identifier_pb2 import ProjectIdentifier, RunIdentifier
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from flyteidl2.dataproxy import dataproxy_service_pb2 as pb
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral, Outputs
from flyteidl2.workflow import run_service_pb2 as run_pb

from etcd_actions import ActionId, ActionsClient, ActionStatus, Phase
from tests.server.front.transferring import MOST, Door, Refused, clock, door
from tests.support.everyday import first_everyday
from tests.support.flyte import boolean, condition, identifier, task

pytestmark = pytest.mark.memory(jumps=False)

__all__ = ["clock", "door"]

ROOT = ActionId("p", "d", "r", "a0")


def number(value: int) -> Literal:
    return Literal(scalar=Scalar(primitive=Primitive(integer=value)))


def inputs(**values: int) -> Inputs:
    return Inputs(
        literals=[NamedLiteral(name=name, value=number(value)) for name, value in values.items()]
    )


async def upload(door: Door, given: Inputs, *ignored: str) -> pb.UploadInputsResponse:
    request = pb.UploadInputsRequest(
        run_id=RunIdentifier(org="127", project="p", domain="d", name="r"), inputs=given
    )
    request.task_spec.task_template.metadata.cache_ignore_input_vars.extend(ignored)
    return await door.call("UploadInputs", request, pb.UploadInputsResponse)


async def data(door: Door, action_id: ActionId = ROOT) -> pb.GetActionDataResponse:
    request = pb.GetActionDataRequest(action_id=identifier(action_id))
    return await door.call("GetActionData", request, pb.GetActionDataResponse)


async def link(door: Door, kind: int, attempt: int = 1) -> list[str]:
    request = pb.CreateDownloadLinkRequest(artifact_type=pb.ArtifactType.ValueType(kind))
    request.action_attempt_id.action_id.CopyFrom(identifier(ROOT))
    request.action_attempt_id.attempt = attempt
    answer = await door.call("CreateDownloadLink", request, pb.CreateDownloadLinkResponse)
    return list(answer.pre_signed_urls.signed_url)


async def run(
    client: ActionsClient, input_uri: str, base: str, phase: Phase = Phase.SUCCEEDED, *args: str
) -> Path:
    """Enqueue a root; gives the directory of its outputs."""
    action = task(ROOT)
    action.input_uri, action.run_output_base = input_uri, base
    template = action.task.spec.task_template
    template.container.args.extend(args)
    template.interface.outputs.variables.add(key="o0")
    await client.enqueue(action)
    await client.put_status(ROOT, 1, ActionStatus(phase))
    return Path((await client.get_task_action(ROOT)).output_uri)


async def refusal(door: Door, name: str, request: object, kind: object) -> Refused:
    with pytest.raises(Refused) as caught:
        await door.call(name, request, kind)  # type: ignore[arg-type]
    return caught.value


async def test_inputs_are_kept_and_come_back_with_outputs(
    door: Door, client: ActionsClient
) -> None:
    given = inputs(x=1, y=2)
    kept = (await upload(door, given)).offloaded_input_data
    assert Path(kept.uri).read_bytes() == given.SerializeToString(deterministic=True)
    base = door.blobs.native_url("runs/p/d/r")
    outputs = await run(client, kept.uri, base)
    refused = await refusal_of_data(door)
    assert refused.code == "not_found"
    assert "outputs" in refused.message
    assert "inputs" not in refused.message
    outputs.mkdir(parents=True)
    made = Outputs(literals=[NamedLiteral(name="o0", value=number(3))])
    (outputs / "outputs.pb").write_bytes(made.SerializeToString())
    answer = await data(door)
    assert (answer.inputs, answer.outputs) == (given, made)
    assert (answer.inputs_uri, answer.outputs_uri) == (kept.uri, f"{outputs}/outputs.pb")
    earlier = await door.call(
        "GetActionData",
        run_pb.GetActionDataRequest(action_id=identifier(ROOT)),
        run_pb.GetActionDataResponse,
        service="flyteidl2.workflow.RunService",
    )
    assert (earlier.inputs, earlier.outputs) == (given, made)
    # Whatever the SDK takes for the organisation.
    assert (await data(door, ActionId("p", "d", "r", "a0", "elsewhere"))).outputs == made
    Path(kept.uri).unlink()
    refused = await refusal_of_data(door)
    assert (refused.code, "inputs" in refused.message) == ("not_found", True)


async def refusal_of_data(door: Door) -> Refused:
    with pytest.raises(Refused) as caught:
        await data(door)
    return caught.value


async def test_outputs_are_answered_once_there_are_any(door: Door, client: ActionsClient) -> None:
    kept = (await upload(door, inputs())).offloaded_input_data
    assert kept.inputs_hash == ""
    outputs = await run(client, kept.uri, door.blobs.native_url("runs/p/d/r"), Phase.RUNNING)
    outputs.mkdir(parents=True)
    (outputs / "outputs.pb").write_bytes(b"half")
    answer = await data(door)
    assert answer.outputs_uri == ""
    assert not answer.outputs.literals


async def test_the_value_of_a_condition_is_its_output(door: Door, client: ActionsClient) -> None:
    await client.enqueue(task(ROOT))
    asked = ActionId("p", "d", "r", "ask")
    action = condition(asked, "a0")
    action.input_uri = ""
    await client.enqueue(action)
    assert not (await data(door, asked)).outputs.literals
    await client.signal(asked, boolean(True))
    assert (await data(door, asked)).outputs.literals[0].value == boolean(True)


async def test_the_hash_of_inputs_is_stable_and_leaves_out_what_is_ignored(door: Door) -> None:
    async def hashed(given: Inputs, *ignored: str) -> str:
        return str((await upload(door, given, *ignored)).offloaded_input_data.inputs_hash)

    one = await hashed(inputs(x=1, y=2))
    assert one == await hashed(inputs(x=1, y=2))
    assert one != await hashed(inputs(x=1, y=3))
    # What a task of the SDK computes for its children.
    assert one == "3267EIQP/fSf34VGMurkxLPyVj3ZEB4eb6ta4F9kDFo="
    assert await hashed(inputs(x=1, y=2), "y") == await hashed(inputs(x=1, y=3), "y")
    assert await hashed(inputs(x=1, y=2), "y") == await hashed(inputs(x=1))
    with_hash = Inputs(literals=[NamedLiteral(name="f", value=Literal(hash="content"))])
    other = Inputs(literals=[NamedLiteral(name="f", value=Literal(hash="content"))])
    other.literals[0].value.scalar.blob.uri = "s3://elsewhere"
    assert await hashed(with_hash) == await hashed(other)


async def test_inputs_need_a_project(door: Door) -> None:
    kind = pb.UploadInputsResponse
    none = await refusal(door, "UploadInputs", pb.UploadInputsRequest(), kind)
    assert (none.code, "project_id" in none.message) == ("invalid_argument", True)
    for project, domain in (("..", "d"), ("p", "a/b"), ("", "d"), ("p", "a\0b")):
        named = ProjectIdentifier(name=project, domain=domain)
        request = pb.UploadInputsRequest(project_id=named)
        refused = await refusal(door, "UploadInputs", request, kind)
        assert refused.code == "invalid_argument"
        assert "project_id." in refused.message
    assert door.stored() == []


@pytest.mark.parametrize(
    ("field", "fields"),
    first_everyday(
        [
            ("filename", {"filename": "../../etc/passwd"}),
            ("filename", {"filename": ".."}),
            ("filename", {"filename": "a\0b"}),
            ("filename", {"filename": "x" * 10_000}),
            ("filename_root", {"filename_root": "a/../../b"}),
            ("filename_root", {"filename_root": "/".join(["x" * 100] * 11)}),
            ("filename_root", {"filename_root": "a//b"}),
            ("project", {"project": ".."}),
            ("project", {"project": ""}),
            ("domain", {"domain": "d/../../other"}),
            ("content_md5", {"content_md5": b"short"}),
            ("content_length", {"content_length": MOST + 1}),
            ("content_length", {"content_length": -1}),
        ],
        2,
    ),
)
async def test_a_hostile_upload_is_refused_by_its_field(
    door: Door, field: str, fields: dict[str, object]
) -> None:
    with pytest.raises(Refused) as caught:
        await door.location(b"hello", **fields)
    assert caught.value.code == "invalid_argument"
    assert field in caught.value.message
    assert len(caught.value.message) < 1000


async def test_how_long_a_url_is_good_is_bounded(door: Door) -> None:
    request = pb.CreateUploadLocationRequest(project="p", domain="d", filename="f")
    for seconds in (-1, 8 * 24 * 3600):
        request.expires_in.seconds = seconds
        kind = pb.CreateUploadLocationResponse
        refused = await refusal(door, "CreateUploadLocation", request, kind)
        assert (refused.code, "expires_in" in refused.message) == ("invalid_argument", True)
    request.expires_in.seconds = 600
    answer = await door.call("CreateUploadLocation", request, pb.CreateUploadLocationResponse)
    assert answer.expires_at.seconds == int(door.clock.now) + 600


async def test_a_report_and_the_code_are_downloaded(door: Door, client: ActionsClient) -> None:
    bundle = await door.location(b"code")
    await door.http("PUT", bundle.signed_url, b"code")
    base = door.blobs.native_url("runs/p/d/r")
    args = ("--tgz", bundle.native_url, "--dest", ".")
    outputs = await run(client, "", base, Phase.SUCCEEDED, *args)
    assert await link(door, pb.ARTIFACT_TYPE_REPORT) == []
    outputs.mkdir(parents=True)
    (outputs / "report.html").write_text("<h1>hello</h1>")
    for attempt in (0, 1):
        (url,) = await link(door, pb.ARTIFACT_TYPE_REPORT, attempt)
        assert url.startswith(f"http://{door.server.address}/blobs/")
        assert (await door.http("GET", url)).body == b"<h1>hello</h1>"
    assert await link(door, pb.ARTIFACT_TYPE_REPORT, 2) == []
    (url,) = await link(door, pb.ARTIFACT_TYPE_CODE_BUNDLE)
    assert (await door.http("GET", url)).body == b"code"
    assert (await door.http("PUT", url, b"other")).status == 403


async def test_files_elsewhere_on_this_machine_are_read_by_their_names_only(
    door: Door, client: ActionsClient, tmp_path: Path
) -> None:
    base = tmp_path / "elsewhere"
    outputs = await run(client, str(base / "inputs.pb"), str(base))
    outputs.mkdir(parents=True)
    (base / "inputs.pb").write_bytes(inputs(x=1).SerializeToString())
    (outputs / "outputs.pb").write_bytes(inputs(x=2).SerializeToString())
    (outputs / "report.html").write_text("report")
    answer = await data(door)
    assert answer.inputs == inputs(x=1)
    (url,) = await link(door, pb.ARTIFACT_TYPE_REPORT)
    assert (await door.http("GET", url)).body == b"report"
    (outputs / "report.html").unlink()
    (outputs / "report.html").symlink_to("/etc/passwd")
    assert (await door.http("GET", url)).status == 404
    with pytest.raises(Refused):
        await link(door, pb.ARTIFACT_TYPE_REPORT)


@pytest.mark.parametrize(
    "uri",
    first_everyday(
        [
            "/etc/passwd",
            "s3://other/inputs.pb",
            "file:///etc/shadow",
            "/x/../etc/inputs.pb\0",
            "nonsense",
        ],
        2,
    ),
)
async def test_inputs_that_are_not_ours_are_not_read(
    door: Door, client: ActionsClient, uri: str
) -> None:
    await run(client, uri, "s3://other/base")
    refused = await refusal_of_data(door)
    assert refused.code == "failed_precondition"
    assert "--blob-dir" in refused.message


async def test_what_is_too_large_or_no_message_is_said_so(
    door: Door, client: ActionsClient, tmp_path: Path
) -> None:
    file = tmp_path / "inputs.pb"
    file.write_bytes(b"\xff" * 100)
    await run(client, str(file), "")
    refused = await refusal_of_data(door)
    assert (refused.code, "Inputs" in refused.message) == ("failed_precondition", True)
    os.truncate(file, 33 << 20)
    refused = await refusal_of_data(door)
    assert (refused.code, str(33 << 20) in refused.message) == ("failed_precondition", True)


async def test_another_projects_run_is_not_found(door: Door, client: ActionsClient) -> None:
    await run(client, "", door.blobs.native_url("runs/p/d/r"))
    for other in (ActionId("q", "d", "r", "a0"), ActionId("p", "e", "r", "a0")):
        with pytest.raises(Refused) as caught:
            await data(door, other)
        assert caught.value.code == "not_found"
    for hostile in ("..", "a/b", "", "a\0b"):
        with pytest.raises(Refused) as caught:
            await data(door, ActionId("p", "d", hostile, "a0"))
        assert caught.value.code == "invalid_argument"
