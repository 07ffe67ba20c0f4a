"""Builds as the SDK asks for them, on a real etcd: what is stored, and what is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from flyteidl2.core.literals_pb2 import Literal
from flyteidl2.imagebuilder.definition_pb2 import (
    AptPackages,
    ImageSpec,
    Layer,
    PipPackages,
    Requirements,
)
from flyteidl2.task.common_pb2 import Inputs, NamedLiteral, Outputs

from etcd_actions import ActionsClient, open_actions_client
from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd.api import Etcd
from etcd_actions.executor.attempts.attempt_command import check_runs_here
from etcd_actions.images import (
    Executing,
    ImageBuilds,
    StoredImage,
    build_task_spec,
    is_build,
    parse_reference,
)


@pytest.fixture
async def client(etcd: Etcd, prefix: bytes) -> AsyncIterator[ActionsClient]:
    async with open_actions_client(etcd, prefix=prefix) as client:
        yield client


class Uploads:
    """What the SDK uploaded."""

    def __init__(self, **blobs: bytes) -> None:
        self.blobs = blobs

    async def read(self, uri: str, most: int) -> bytes:
        assert len(self.blobs[uri]) <= most
        return self.blobs[uri]

    async def exists(self, uri: str) -> bool:
        return uri in self.blobs


def builds(client: ActionsClient, uploads: Uploads) -> ImageBuilds:
    return ImageBuilds(client.images, uploads.read, uploads.exists, Executing("3.11", has_uv=False))


def image(*layers: Layer) -> bytes:
    return bytes(ImageSpec(base_image="python:3.11", layers=layers).SerializeToString())


def inputs(**texts: str) -> Inputs:
    found = Inputs()
    for name, text in texts.items():
        value = Literal()
        value.scalar.primitive.string_value = text
        found.literals.append(NamedLiteral(name=name, value=value))
    return found


PACKAGES = image(Layer(pip_packages=PipPackages(packages=["a"])))
FILES = image(Layer(requirements=Requirements(file="r.txt")))


async def test_an_image_is_found_under_its_name_once_its_build_was_asked_for(
    client: ActionsClient,
) -> None:
    builder = builds(client, Uploads(spec=PACKAGES))
    assert await builder.find("n:t") is None
    run = await builder.task_spec(inputs(spec="spec", context="", target_image="reg/n:t"))
    found = await builder.find("n:t")
    assert found is not None
    assert found == run.task_template.container.image
    reference = parse_reference(found)
    assert reference is not None
    stored = await client.images.get(reference.digest)
    assert stored is not None
    assert stored == StoredImage(name="n:t", spec=PACKAGES, used=stored.used)


async def test_the_run_of_a_build_is_one_that_the_executor_takes(client: ActionsClient) -> None:
    builder = builds(client, Uploads(spec=PACKAGES))
    run = await builder.task_spec(inputs(spec="spec", target_image="n:t"))
    check_runs_here(run.task_template)
    assert not is_build(run)
    assert is_build(build_task_spec())
    outputs = Outputs.FromString(bytes.fromhex(run.task_template.container.args[-1]))
    image = outputs.literals[0].value.scalar.primitive.string_value
    assert image == run.task_template.container.image


async def test_the_same_definition_has_the_same_image_and_other_files_have_another(
    client: ActionsClient,
) -> None:
    uploads = Uploads(spec=FILES, first=b"1", copy=b"1", second=b"2")
    builder = builds(client, uploads)
    found = []
    for context in ("first", "copy", "second"):
        await builder.task_spec(inputs(spec="spec", context=context, target_image="n:t"))
        found.append(await builder.find("n:t"))
    assert found[0] == found[1] != found[2]
    del uploads.blobs["second"]
    # The SDK sends the files again.
    assert await builder.find("n:t") is None


async def test_what_cannot_be_had_is_refused_before_anything_is_stored(
    client: ActionsClient,
) -> None:
    data = image(Layer(apt_packages=AptPackages(packages=["vim"])))
    builder = builds(client, Uploads(spec=data))
    with pytest.raises(InvalidArgument, match="it installs packages of the system: 'vim'"):
        await builder.task_spec(inputs(spec="spec", target_image="n:t"))
    assert await builder.find("n:t") is None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        (inputs(target_image="n:t"), "inputs.spec"),
        (inputs(spec="spec"), "inputs.target_image"),
        (inputs(spec="spec", target_image="n:t"), "context"),
        (inputs(spec="spec", context="c", target_image="n t"), "id.name"),
    ],
)
async def test_what_is_missing_is_named(client: ActionsClient, given: Inputs, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await builds(client, Uploads(spec=FILES, c=b"")).task_spec(given)
    assert caught.value.field == field


async def test_a_definition_that_somebody_wrote_over_is_not_used(
    client: ActionsClient, etcd: Etcd
) -> None:
    reference = await client.images.put(StoredImage(name="n:t", spec=PACKAGES))
    key = client.images._definition(reference.digest)
    for value, text in ((b"{", "truncated"), (b'{"name": "n:t", "spec": ""}', "another")):
        await etcd.put(key, value)
        with pytest.raises(DecodeError, match=text):
            await client.images.get(reference.digest)
