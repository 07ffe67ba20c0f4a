"""Makes a program's root action, and reads its result, with Flyte's own SDK.

It is run as a file, by the interpreter that has the SDK, so it imports nothing of
etcd_actions. One JSON object comes on standard input and one goes to standard output: what
the program itself prints goes to standard error.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import enum
import importlib.util
import inspect
import json
import os
import stat
import sys
import typing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

MOST_OUTPUTS = 1 << 30


class Unusable(Exception):
    """What was asked for cannot be done; the message says what to change."""


def main() -> int:
    """Do what standard input asks for."""
    # What is beside this file is no module of the program's, or of the SDK's.
    del sys.path[0]
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        if request["do"] == "prepare":
            given = asyncio.run(prepare(request))
        else:
            given = asyncio.run(result(request))
    except Unusable as error:
        given = {"error": str(error)}
    except ImportError as error:
        given = {"error": f"{error}: is this the python that has Flyte's SDK?"}
    json.dump(given, answer)
    answer.close()
    return 0


async def prepare(request: dict[str, Any]) -> dict[str, Any]:
    """Write the inputs, and give the request that enqueues the root."""
    task = load_task(request)
    from flyte._internal.runtime import convert  # noqa: PLC0415
    from flyte._internal.runtime.task_serde import translate_task_to_wire  # noqa: PLC0415
    from flyte.models import SerializationContext  # noqa: PLC0415
    from flyteidl2.actions.actions_service_pb2 import Action, EnqueueRequest  # noqa: PLC0415
    from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier  # noqa: PLC0415
    from flyteidl2.core.literals_pb2 import KeyValuePair  # noqa: PLC0415
    from flyteidl2.workflow.run_definition_pb2 import TaskAction  # noqa: PLC0415

    kwargs = native_inputs(task, request["inputs"])
    try:
        inputs = await convert.convert_from_native_to_inputs(task.native_interface, **kwargs)
    except Exception as error:
        raise Unusable(f"--input: {error}") from error
    context = SerializationContext(
        version=request["version"],
        project=request["project"],
        domain=request["domain"],
        org=request["org"],
        root_dir=Path(request["root_dir"]),
    )
    spec = translate_task_to_wire(task, context)
    base = Path(request["base"])
    path = base / "a0" / "inputs.pb"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(inputs.proto_inputs.SerializeToString())
    run = RunIdentifier(
        org=request["org"],
        project=request["project"],
        domain=request["domain"],
        name=request["run"],
    )
    action = Action(
        action_id=ActionIdentifier(run=run, name="a0"),
        input_uri=str(path),
        run_output_base=str(base),
        task=TaskAction(spec=spec),
    )
    action.task.id.CopyFrom(task_identifier(spec.task_template.id))
    enqueue = EnqueueRequest(action=action)
    enqueue.run_spec.run_start_time.FromDatetime(datetime.now(UTC).replace(microsecond=0))
    for name, value in request["environment"].items():
        enqueue.run_spec.envs.values.append(KeyValuePair(key=name, value=value))
    return {"request": base64.b64encode(enqueue.SerializeToString()).decode()}


async def result(request: dict[str, Any]) -> dict[str, Any]:
    """Read what a task gave back."""
    task = load_task(request)
    from flyte._internal.runtime import convert  # noqa: PLC0415
    from flyteidl2.task.common_pb2 import Outputs  # noqa: PLC0415

    data = read_outputs(Path(request["outputs"]) / "outputs.pb")
    if data is None:
        return {"result": None}
    outputs = convert.Outputs(proto_outputs=Outputs.FromString(data))
    value = await convert.convert_outputs_to_native(task.native_interface, outputs)
    return {"result": readable(value)}


def read_outputs(path: Path) -> bytes | None:
    """What a task left, which may be anything; None for nothing.

    A FIFO or a device would block: only a regular file is opened, and no link is followed.
    """
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Unusable(f"{path} is not a regular file")
        with os.fdopen(os.open(path, flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise Unusable(f"{path} is not a regular file")
            data = b"" if found.st_size > MOST_OUTPUTS else file.read(MOST_OUTPUTS + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unusable(f"{path}: {error.strerror}") from error
    if max(len(data), found.st_size) > MOST_OUTPUTS:
        raise Unusable(f"{path} is larger than {MOST_OUTPUTS} bytes")
    return data


def load_task(request: dict[str, Any]) -> Any:
    """Import the program, and find the task in it."""
    path = Path(request["file"])
    root = request["root_dir"]
    sys.path.insert(0, root)
    os.chdir(root)
    module_name = ".".join(path.relative_to(root).with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise Unusable(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    from flyte._task import TaskTemplate  # noqa: PLC0415

    task = getattr(module, request["task"], None)
    if not isinstance(task, TaskTemplate):
        names = [name for name, each in vars(module).items() if isinstance(each, TaskTemplate)]
        raise Unusable(
            f"{path} has no task {request['task']}: there is {', '.join(names) or 'none'}"
        )
    return task


def task_identifier(identifier: Any) -> Any:
    """The identifier of a task in the form that an action has."""
    from flyteidl2.task.task_definition_pb2 import TaskIdentifier  # noqa: PLC0415

    return TaskIdentifier(
        org=identifier.org,
        project=identifier.project,
        domain=identifier.domain,
        name=identifier.name,
        version=identifier.version,
    )


def native_inputs(task: Any, texts: dict[str, str]) -> dict[str, Any]:
    """Make values of what was given as texts, by the types that the task declares."""
    declared = task.native_interface.inputs
    given = {}
    for name, text in texts.items():
        if name not in declared:
            names = ", ".join(declared) or "none"
            raise Unusable(f"--input {name}: the task has no such input: it has {names}")
        given[name] = native(name, text, declared[name][0])
    missing = [
        name
        for name, (_, default) in declared.items()
        if name not in given and default is inspect.Parameter.empty
    ]
    if missing:
        raise Unusable(f"--input {missing[0]}=VALUE is missing")
    return given


def native(name: str, text: str, kind: Any) -> Any:
    """A value of one type: a text as it is, all else as JSON."""
    if kind is str:
        return text
    try:
        if kind in (datetime, date):
            return kind.fromisoformat(text)
        if kind is timedelta:
            return timedelta(seconds=float(text))
        if inspect.isclass(kind) and issubclass(kind, enum.Enum):
            return kind[text]
        value = json.loads(text)
        if kind is float and isinstance(value, int):
            return float(value)
        if hasattr(kind, "model_validate"):
            return kind.model_validate(value)
        if inspect.isclass(kind) and dataclasses.is_dataclass(kind):
            return kind(**value)
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"--input {name}={text}: no {_called(kind)}: {error}") from error
    if kind in (int, float, bool) and type(value) is not kind:
        raise Unusable(f"--input {name}={text}: no {_called(kind)}")
    return value


def _called(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) else str(typing.cast(Any, kind))


def readable(value: Any) -> Any:
    """A value that JSON can show."""
    if hasattr(value, "model_dump"):
        return readable(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return readable(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): readable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    with contextlib.suppress(AttributeError):
        return value.path
    return str(value)


if __name__ == "__main__":
    sys.exit(main())
