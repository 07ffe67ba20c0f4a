"""What is read of an image's definition, and what of it is refused with which words."""

from __future__ import annotations

import pytest
from flyteidl2.core.security_pb2 import Secret
from flyteidl2.imagebuilder.definition_pb2 import (
    AptPackages,
    Commands,
    CopyConfig,
    Env,
    ImageSpec,
    Layer,
    PipOptions,
    PipPackages,
    PoetryProject,
    PythonWheels,
    UVProject,
    WorkDir,
)
from flyteidl2.imagebuilder.definition_pb2 import Requirements as RequirementsLayer

from etcd_actions.errors import InvalidArgument
from etcd_actions.images import (
    IndexOptions,
    Packages,
    Project,
    Requirements,
    Wheels,
    parse_image,
    parse_reference,
    refusal,
    unsupported_parts,
)
from etcd_actions.images.unsupported import own_variables
from tests.support.table import table

SDK_BASE = "ghcr.io/flyteorg/flyte:py3.11-v2.12.1"


def spec(*layers: Layer, base: str = SDK_BASE, python: str = "3.11") -> bytes:
    found = ImageSpec(base_image=base, python_version=python, layers=layers)
    return bytes(found.SerializeToString())


def test_each_layer_that_installs_becomes_a_step_in_its_order() -> None:
    options = PipOptions(
        index_url="https://i/", extra_index_urls=["https://j/"], pre=True, extra_args="--no-deps"
    )
    found = parse_image(
        spec(
            Layer(pip_packages=PipPackages(packages=["a>=1", "b"], options=options)),
            Layer(requirements=RequirementsLayer(file="r.txt")),
            Layer(python_wheels=PythonWheels(dir="dist", package_name="c")),
            Layer(
                uv_project=UVProject(
                    pyproject="p",
                    uvlock="p/uv.lock",
                    options=PipOptions(extra_args="--no-install-project"),
                )
            ),
            Layer(env=Env(env_variables={"A": "1", "VIRTUAL_ENV": "/opt/venv"})),
        )
    )
    none = IndexOptions()
    assert found.steps == (
        Packages(("a>=1", "b"), IndexOptions("https://i/", ("https://j/",), True, "--no-deps")),
        Requirements("r.txt", none),
        Wheels("dist", "c", none),
        Project("p", "p/uv.lock", False, IndexOptions(extra_args="--no-install-project")),
    )
    assert own_variables(found) == {"A": "1"}
    assert found.needs_context
    assert unsupported_parts(found, "3.11") == []


def test_what_the_sdk_puts_below_each_image_is_no_problem() -> None:
    user = "if ! id -u flyte >/dev/null 2>&1; then useradd flyte; fi && chown -R flyte:flyte /root"
    found = parse_image(
        spec(
            Layer(commands=Commands(cmd=[user])),
            Layer(workdir=WorkDir(workdir="/home/flyte")),
            Layer(apt_packages=AptPackages(packages=["build-essential", "ca-certificates"])),
            Layer(pip_packages=PipPackages(packages=["a"])),
            base="python:3.11-slim-bookworm",
        )
    )
    assert unsupported_parts(found, "3.11") == []


@table(
    ("layer", "what", "remedy"),
    [
        (Layer(apt_packages=AptPackages(packages=["vim"])), "'vim'", "with_apt_packages()"),
        (Layer(commands=Commands(cmd=["make all"])), "'make all'", "with_commands()"),
        (Layer(copy_config=CopyConfig(src="a", dst="/data")), "'/data'", "flyte.io.File"),
        (Layer(workdir=WorkDir(workdir="/srv")), "'/srv'", "with_workdir()"),
        (Layer(poetry_project=PoetryProject(pyproject="p")), "Poetry", "with_uv_project()"),
        (
            Layer(pip_packages=PipPackages(secret_mounts=[Secret(group="g", key="k")])),
            "'g/k'",
            "PIP_INDEX_URL",
        ),
        (
            Layer(uv_project=UVProject(pyproject="p", options=PipOptions(extra_args="--group x"))),
            "--group x",
            "uv.lock",
        ),
    ],
)
def test_what_cannot_be_had_is_named_with_a_remedy(layer: Layer, what: str, remedy: str) -> None:
    (problem,) = unsupported_parts(parse_image(spec(layer)), "3.11")
    assert what in problem.what
    assert remedy in problem.remedy
    text = refusal("n:t", [problem])
    assert text.startswith("image n:t is not supported by the local executor:\n- ")
    assert "--images ignore" in text


def test_another_python_and_another_base_are_problems() -> None:
    found = parse_image(spec(base="pytorch/pytorch:2", python="3.13"))
    texts = [each.what for each in unsupported_parts(found, "3.11")]
    assert texts == [
        "it is based on 'pytorch/pytorch:2'",
        "it has Python 3.13, and the executor Python 3.11",
    ]


def test_a_lock_needs_uv() -> None:
    found = parse_image(spec(Layer(uv_project=UVProject(pyproject="p", uvlock="uv.lock"))))
    assert unsupported_parts(found, "3.11") == []
    (problem,) = unsupported_parts(found, "3.11", has_uv=False)
    assert "uv.lock" in problem.what


@table(
    ("data", "field"),
    [
        (b"\xff", "spec"),
        (b"\0" * (256 * 1024 + 1), "spec"),
        (spec(Layer()), "spec.layers[0]"),
        (spec(Layer(requirements=RequirementsLayer(file="../r"))), "spec.layers[0].requirements"),
        (spec(Layer(requirements=RequirementsLayer(file="/r"))), "spec.layers[0].requirements"),
        (spec(Layer(requirements=RequirementsLayer())), "spec.layers[0].requirements"),
        (spec(Layer(python_wheels=PythonWheels(dir="a/../.."))), "spec.layers[0].python_wheels"),
        (
            spec(Layer(pip_packages=PipPackages(packages=["--target=/"]))),
            "spec.layers[0].pip_packages",
        ),
        (
            spec(Layer(pip_packages=PipPackages(options=PipOptions(extra_args="'")))),
            "spec.layers[0].pip_packages.options.extraArgs",
        ),
    ],
)
def test_a_definition_that_cannot_be_used_is_refused_by_its_field(data: bytes, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse_image(data)
    assert caught.value.field == field


@pytest.mark.parametrize(
    "text",
    [
        "",
        "python:3.11",
        "etcd-actions/n:t",
        f"etcd-actions/n:t@sha256:{'a' * 63}",
        f"other/n:t@sha256:{'a' * 64}",
        f"etcd-actions/n:t@sha256:{'a' * 64}\n",
    ],
)
def test_an_image_of_others_is_no_reference(text: str) -> None:
    assert parse_reference(text) is None


def test_a_reference_is_read_as_it_was_written() -> None:
    found = parse_reference(f"etcd-actions/n:t@sha256:{'a' * 64}")
    assert found is not None
    assert (found.name, found.digest) == ("n:t", "a" * 64)
    assert parse_reference(str(found)) == found
