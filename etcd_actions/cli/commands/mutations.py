"""``enqueue``, ``abort``, ``signal`` and ``status``: changes of one action."""

from __future__ import annotations

import codecs
import json
import math
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.common.identifier_pb2 import ActionIdentifier
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions._internal.named_files import read_named_file, size_text, text_of
from etcd_actions._internal.quoting import clipped, quoted
from etcd_actions.cli.backends import Backend, open_backend
from etcd_actions.cli.exit_codes import ExitCode
from etcd_actions.cli.formats.changes import Change, plural, print_change
from etcd_actions.cli.formats.standard_output import check_input_open
from etcd_actions.cli.names import find_action, parse_name, with_nearest
from etcd_actions.cli.options import CommonOptions
from etcd_actions.errors import ConfigError, InputError
from etcd_actions.model import ErrorState, Phase
from etcd_actions.model import flyte as conversions

# etcd accepts requests of some megabytes, and the service no larger ones.
_MOST_BYTES = 16 * 1024 * 1024
# Text that begins with a byte order mark: no binary request begins so.
_JSON_BEGINS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_INTEGER = "[+-]?[0-9]+"
_FLOAT = r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?"


async def enqueue_file(common: CommonOptions, file: str, output: str | None = None) -> int:
    """Create the action that a file describes; ``-`` is standard input."""
    common.config.check_one_namespace()
    # Abandoned, so that a pipe or a terminal does not delay the end.
    request = await trio.to_thread.run_sync(read_request, file, abandon_on_cancel=True)
    async with open_backend(common) as backend:
        created = await backend.enqueue(request)
    action_id = request.action.action_id
    run = action_id.run
    name = f"{run.project}/{run.domain}/{run.name}/{action_id.name}"
    result, message = "enqueued", f"enqueued {name}"
    if created is False:
        result, message = "unchanged", f"{name} is already there, by the same request"
    print_change(output, Change(name=name, result=result), message)
    return ExitCode.OK


async def abort_action(
    common: CommonOptions, action: str, reason: str, by: str, output: str | None = None
) -> int:
    """End an action and all below it."""
    request = pb.AbortRequest(reason=reason)
    if by:
        request.aborted_by.user.id.subject = by
    async with _open_for_action(common, action) as (backend, named):
        request.action_id.CopyFrom(named)
        done = await backend.abort(request)
    path = _path(named)
    change = Change(name=path, result="aborted")
    if done is None:
        text = "aborted it and the actions below it"
    else:
        change.aborted = done.aborted
        change.phase = "" if done.ended is None else done.ended.name
        text = f"aborted {plural(len(done.aborted), 'action')}"
        if not done.aborted:
            change.result = "unchanged"
            # Without a phase an earlier call aborted it, and its object is deleted.
            text = f"it had already ended: {change.phase or 'ABORTED'}"
    print_change(output, change, f"{path}: {text}")
    return ExitCode.OK


async def signal_condition(
    common: CommonOptions, action: str, value: str, kind: str, by: str, output: str | None = None
) -> int:
    """Deliver the value of a condition."""
    request = pb.SignalRequest(value=literal_of(value, kind))
    if by:
        request.signalled_by.user.id.subject = by
    async with _open_for_action(common, action) as (backend, named):
        request.action_id.CopyFrom(named)
        request.parent_action_name = named.name
        await backend.signal(request)
    path = _path(named)
    print_change(output, Change(name=path, result="signalled"), f"signalled {path}")
    return ExitCode.OK


async def report_status(
    common: CommonOptions,
    action: str,
    phase: str,
    attempt: int,
    message: str,
    error: ErrorState | None,
    output: str | None = None,
) -> int:
    """Report the phase of an action."""
    request = pb.UpdateRequest(attempt=attempt)
    request.status.phase = Phase[phase].value
    request.status.attempts = attempt
    async with _open_for_action(common, action) as (backend, named):
        request.action_id.CopyFrom(named)
        await backend.update(request, error, message)
    path = _path(named)
    change = Change(name=path, result="reported", phase=phase, attempt=attempt)
    print_change(output, change, f"{path} is {phase} in attempt {attempt}")
    return ExitCode.OK


@asynccontextmanager
async def _open_for_action(
    common: CommonOptions, action: str
) -> AsyncIterator[tuple[Backend, ActionIdentifier]]:
    """Open the backend, and look up the action that an argument names.

    If the body raises NotFound, the error has the nearest names.
    """
    parse_name(action)
    async with open_backend(common) as backend:
        named = await find_action(backend.names, action)
        async with with_nearest(backend.names, action):
            yield backend, conversions.action_identifier(named.action_id)


def _path(named: ActionIdentifier) -> str:
    run = named.run
    return "/".join(filter(None, (run.org, run.project, run.domain, run.name, named.name)))


def read_request(file: str) -> pb.EnqueueRequest:
    """Read an EnqueueRequest or an Action, as protobuf's JSON or binary.

    Raises:
        InputError: It is neither.
    """
    name = "<stdin>" if file == "-" else file
    data = _read(file, name)
    if not data.strip():
        raise InputError(f"{name}: it is empty: give an EnqueueRequest, or an Action")
    if data.startswith(_JSON_BEGINS) or data.lstrip()[:1] == b"{":
        try:
            return _from_json(text_of(data))
        except ValueError as error:
            why = clipped(" ".join(str(error).split()), 500)
            raise InputError(f"{name}: neither an EnqueueRequest nor an Action: {why}") from None
    # The bytes do not show which of the two it is, but only one parse has a spec.
    for of_action in (False, True):
        request = pb.EnqueueRequest()
        try:
            (request.action if of_action else request).ParseFromString(data)
        except BadMessage:
            continue
        if request.action.WhichOneof("spec") is not None:
            return request
    raise InputError(f"{name}: neither an EnqueueRequest nor an Action, in JSON or in binary")


def _read(file: str, name: str) -> bytes:
    try:
        if file != "-":
            return read_named_file(file, _MOST_BYTES, pipes=True)
        check_input_open()
        data = sys.stdin.buffer.read(_MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{name}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise InputError(f"{name}: it has more than {size_text(_MOST_BYTES)}")
    return data


def _from_json(text: str) -> pb.EnqueueRequest:
    """Parse protobuf's JSON, or raise ValueError."""
    request = pb.EnqueueRequest()
    try:
        tree: dict[str, Any] = json.loads(text)
        is_request = "action" in tree
        Parse(text, request if is_request else request.action)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ParseError, ValueError) as error:
        raise ValueError(str(error)) from None
    except (ArithmeticError, AttributeError, LookupError, TypeError) as error:
        # protobuf's parser does not check the type of some fields.
        raise ValueError(f"a field has a value of another kind: {error}") from None
    return request


def literal_of(text: str, kind: str) -> Literal:
    """The value of a signal.

    Args:
        text: The value.
        kind: ``bool``, ``int``, ``float`` or ``str``; ``auto`` to infer it from the text.

    Raises:
        ConfigError: The text is not a value of that kind.
    """
    if kind == "auto":
        kind = _looks_like(text)
    try:
        match kind:
            case "bool":
                primitive = Primitive(boolean={"true": True, "false": False}[text.lower()])
            case "int":
                primitive = Primitive(integer=int(_matching(_INTEGER, text)))
            case "float":
                primitive = Primitive(float_value=_float(text))
            case _:
                primitive = Primitive(string_value=text)
    except (KeyError, ValueError):
        raise ConfigError(
            f"{quoted(text)} is not a valid {kind}: give another value, or another --type"
        ) from None
    return Literal(scalar=Scalar(primitive=primitive))


def _looks_like(text: str) -> str:
    if text.lower() in ("true", "false"):
        return "bool"
    if re.fullmatch(_INTEGER, text):
        return "int"
    return "float" if re.fullmatch(_FLOAT, text) else "str"


def _float(text: str) -> float:
    if text in ("nan", "inf", "-inf"):
        return float(text)
    number = float(_matching(_FLOAT, text))
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _matching(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError(f"{text} is not a number")
    return text
