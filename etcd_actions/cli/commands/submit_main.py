"""Starts a program's task with Flyte's SDK, and reads its result.

It is run as a file, by the interpreter that has the SDK, and imports nothing of etcd_actions. It
reads one JSON object from standard input. To standard output it writes a line when the inputs are
converted, and one with the response; the output of the program goes to standard error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import enum
import importlib.util
import inspect
import json
import os
import sys
import types
import typing
import warnings
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO


class Refused(Exception):
    """The request failed; the message names the remedy.

    Attributes:
        kind: ``usage``, ``input``, ``taken`` (the run's name), ``away`` (the service) or
            ``refused``.
    """

    def __init__(self, message: str, kind: str = "usage") -> None:
        super().__init__(message)
        self.kind = kind


def main() -> int:
    """Handle the request on standard input."""
    # The directory of this file has no modules of the program or the SDK.
    del sys.path[0]
    responses = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    try:
        response = run(request, responses) if request["do"] == "run" else result(request)
    except Refused as error:
        response = {"error": str(error), "kind": error.kind}
    except ImportError as error:
        response = {"error": f"{error}: is this the python that has Flyte's SDK?", "kind": "input"}
    print(json.dumps(response), file=responses)
    responses.close()
    return 0


def run(request: dict[str, Any], responses: TextIO) -> dict[str, Any]:
    """Create the run."""
    # A program can call the service when it is imported, or connect to another one.
    connect(request)
    task = load_task(request)
    connect(request)
    kwargs = native_inputs(task, request["inputs"])
    print(json.dumps({"converted": True}), file=responses, flush=True)
    import flyte  # noqa: PLC0415

    context = flyte.with_runcontext(
        mode="remote",
        name=request["run"],
        # The executor finds the program by its path: the files are not sent.
        copy_style="none",
        version=request["version"],
        env_vars=request["environment"],
        run_base_dir=request["output_base"],
    )
    try:
        made = context.run(task, **kwargs)
    except Exception as error:
        raise refusal(error) from error
    return {"run": made.name}


def result(request: dict[str, Any]) -> dict[str, Any]:
    """Read the result of the run's task, in the types that the task declares."""
    connect(request)
    task = load_task(request)
    connect(request)
    from flyte.syncify import syncify  # noqa: PLC0415

    try:
        value = syncify(outputs_of)(task, request)
    except Exception as error:
        refused = refusal(error)
        kind = "input" if refused.kind == "usage" else refused.kind
        raise Refused(f"the result cannot be read: {refused}", kind) from error
    return {"result": readable(value)}


async def outputs_of(task: Any, request: dict[str, Any]) -> Any:
    """Request the outputs of the run's root."""
    from flyte._initialize import get_client  # noqa: PLC0415
    from flyte._internal.runtime import convert  # noqa: PLC0415
    from flyteidl2.common.identifier_pb2 import ActionIdentifier, RunIdentifier  # noqa: PLC0415
    from flyteidl2.dataproxy import dataproxy_service_pb2 as pb  # noqa: PLC0415

    run = RunIdentifier(
        org=request["org"],
        project=request["project"],
        domain=request["domain"],
        name=request["run"],
    )
    data_request = pb.GetActionDataRequest(action_id=ActionIdentifier(run=run, name="a0"))
    data = await get_client().dataproxy_service.get_action_data(data_request)
    if not data.outputs.literals:
        return None
    outputs = convert.Outputs(proto_outputs=data.outputs)
    return await convert.convert_outputs_to_native(task.native_interface, outputs)


def connect(request: dict[str, Any]) -> None:
    """Connect the SDK to the service."""
    import flyte  # noqa: PLC0415

    flyte.init(
        **request["connection"],
        org=request["org"],
        project=request["project"],
        domain=request["domain"],
        root_dir=Path(request["root_dir"]),
        image_builder="remote",
    )


def refusal(error: Exception) -> Refused:
    """Classify an error of the SDK."""
    code = getattr(error, "code", None)
    text = str(error) or type(error).__name__
    if code == "RunAlreadyExistsError":
        return Refused(text, "taken")
    if code == "SystemUnavailableError":
        return Refused(text, "away")
    if code == "InvalidArgumentError" or isinstance(error, (TypeError, ValueError)):
        return Refused(text)
    # Several calls of the SDK raise the errors of its transport.
    name = getattr(code, "name", "")
    kind = {"UNAVAILABLE": "away", "INVALID_ARGUMENT": "usage"}.get(name, "refused")
    return Refused(f"{type(error).__name__}: {text}", kind)


def load_task(request: dict[str, Any]) -> Any:
    """Import the program, and find the task in it."""
    path = Path(request["file"])
    root = request["root_dir"]
    sys.path.insert(0, root)
    os.chdir(root)
    module_name = ".".join(path.relative_to(root).with_suffix("").parts)
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise Refused(f"{path} is not a Python file", "input")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    spec.loader.exec_module(module)
    from flyte._task import TaskTemplate  # noqa: PLC0415

    name = request["task"]
    task = getattr(module, name, None)
    if not isinstance(task, TaskTemplate):
        names = [name for name, each in vars(module).items() if isinstance(each, TaskTemplate)]
        raise Refused(f"{path} has no task {name}: {_did_you_mean(name, names)}")
    return task


def native_inputs(task: Any, texts: dict[str, str]) -> dict[str, Any]:
    """Convert texts to the types that the task declares."""
    from flyte._internal.runtime import types_serde  # noqa: PLC0415

    declared = task.native_interface.inputs
    for name in texts:
        if name not in declared:
            raise Refused(
                f"--input {name}: the task has no such input: {_did_you_mean(name, declared)}"
            )
    interface = types_serde.transform_native_to_typed_interface(task.native_interface)
    literal_types = {each.key: each.value.type for each in interface.inputs.variables}
    given = {}
    for name, (kind, default) in declared.items():
        if name in texts:
            given[name] = native(name, texts[name], kind, literal_types[name])
        elif default is inspect.Parameter.empty:
            if not _may_be_none(kind):
                called = ", ".join(f"{each} ({_type_name(declared[each][0])})" for each in declared)
                raise Refused(f"--input {name}=VALUE is missing: the inputs are {called}")
            given[name] = None
    return given


def native(name: str, text: str, kind: Any, literal_type: Any) -> Any:
    """Convert a text as ``flyte run`` does; also times with a zone, enumerations by value."""
    with warnings.catch_warnings():
        # An option that turns warnings into errors is meant for those of the program.
        warnings.simplefilter("ignore")
        import click  # noqa: PLC0415
        from flyte.cli._params import FlyteLiteralConverter  # noqa: PLC0415

    if kind is str:
        return text
    if inspect.isclass(kind) and issubclass(kind, enum.Enum):
        by_value = {str(each.value): each for each in kind}
        # The SDK turns a Literal into an enumeration with generated names.
        is_literal = kind.__name__ == "LiteralEnum"
        members = by_value if is_literal else by_value | dict(kind.__members__)
        if text not in members:
            raise Refused(f"--input {name}={text}: {_did_you_mean(text, members)}")
        return members[text].value if is_literal else members[text]
    if text == "null" and _may_be_none(kind) and str not in typing.get_args(kind):
        return None
    try:
        given: Any = text
        if kind in (datetime, date):
            with contextlib.suppress(ValueError):
                given = datetime.fromisoformat(text)
        converter = FlyteLiteralConverter(literal_type, kind)
        value = converter.convert(None, None, converter.click_type.convert(given, None, None))
        return with_declared_types(value, kind)
    except click.ClickException as error:
        reason = error.format_message()
    except Exception as error:
        # Converters of the SDK, and of the types of the program.
        reason = str(error) or type(error).__name__
    raise Refused(f"--input {name}={text}: no {_type_name(kind)}: {reason}")


def with_declared_types(value: Any, kind: Any) -> Any:
    """The value with times and enumerations in place of their texts in JSON."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        others = [each for each in arguments if each is not type(None)]
        return with_declared_types(value, others[0]) if len(others) == 1 else value
    if origin is list and isinstance(value, list) and arguments:
        return [with_declared_types(each, arguments[0]) for each in value]
    if origin is dict and isinstance(value, dict) and arguments:
        return {key: with_declared_types(each, arguments[1]) for key, each in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        hints = typing.get_type_hints(type(value))
        fields = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        changed = {
            name: new
            for name, old in fields.items()
            if (new := with_declared_types(old, hints.get(name))) is not old and new != old
        }
        return dataclasses.replace(value, **changed) if changed else value
    # Some classes do not support isinstance: Any, in some versions, and protocols.
    if not inspect.isclass(kind) or not issubclass(kind, (enum.Enum, date, timedelta)):
        return value
    if isinstance(value, kind):
        return value
    if issubclass(kind, enum.Enum):
        return kind[value] if value in kind.__members__ else kind(value)
    if issubclass(kind, date) and isinstance(value, str):
        return kind.fromisoformat(value)
    if issubclass(kind, timedelta) and isinstance(value, (int, float)):
        return kind(seconds=value)
    return value


def readable(value: Any) -> Any:
    """A value that JSON can show."""
    if isinstance(value, enum.Enum):
        return value.name
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


def _may_be_none(kind: Any) -> bool:
    return kind is type(None) or type(None) in typing.get_args(kind)


def _did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest name, and all names."""
    names = list(names)
    near = difflib.get_close_matches(name, names, 1)
    guess = f"did you mean {near[0]}? " if near else ""
    return f"{guess}there is {', '.join(names) or 'none'}"


def _type_name(kind: Any) -> str:
    return kind.__name__ if inspect.isclass(kind) else str(kind)


if __name__ == "__main__":
    sys.exit(main())
