"""``enqueue``, ``abort``, ``signal`` and ``status``: what changes one action."""

from __future__ import annotations

import codecs
import json
import math
import re
import sys
from typing import Any

import trio
from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions._internal.named_files import read_named_file, size_text, text_of
from etcd_actions._internal.quoting import clipped, quoted
from etcd_actions.cli.backends import Directly, action_named, identifier, open_asked
from etcd_actions.cli.exit_codes import ExitCode, say
from etcd_actions.cli.formats.standard_output import check_input_open
from etcd_actions.cli.options import CommonOptions
from etcd_actions.errors import ConfigError, InputError
from etcd_actions.model import ErrorState, Phase

# etcd takes requests of some megabytes, and the service no larger ones.
_MOST_BYTES = 16 * 1024 * 1024
# Text with a mark of its encoding before it: no binary request begins like this.
_JSON_BEGINS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_INTEGER = "[+-]?[0-9]+"
_FLOAT = r"[+-]?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,4})?"


async def enqueue_file(common: CommonOptions, file: str) -> int:
    """Create the action that a file describes."""
    common.config.check_one_namespace()
    # A pipe or a terminal may keep us waiting; the end does not wait for it.
    request = await trio.to_thread.run_sync(read_request, file, abandon_on_cancel=True)
    async with open_asked(common) as asked:
        await asked.enqueue(request)
    action_id = request.action.action_id
    run = action_id.run
    say(f"enqueued {run.project}/{run.domain}/{run.name}/{action_id.name}")
    return ExitCode.OK


async def abort_action(common: CommonOptions, action: str, reason: str, by: str) -> int:
    """End an action and all below it."""
    request = pb.AbortRequest(action_id=identifier(action), reason=reason)
    if by:
        request.aborted_by.user.id.subject = by
    async with open_asked(common) as asked:
        if isinstance(asked, Directly):
            done = await asked.client.abort_action(
                request.action_id, request.reason, request.aborted_by
            )
            if done.recorded and done.ended is not None:
                say(f"{action} was over already: {done.ended.name}")
            else:
                say(f"aborted {len(done.aborted)} actions")
        else:
            await asked.abort(request)
            say(f"aborted {action}, and what was going on below it")
    return ExitCode.OK


async def signal_condition(
    common: CommonOptions, action: str, value: str, kind: str, by: str
) -> int:
    """Give a condition its value."""
    named = action_named(action)
    request = pb.SignalRequest(
        action_id=identifier(action),
        parent_action_name=named.name,
        value=literal_of(value, kind),
    )
    if by:
        request.signalled_by.user.id.subject = by
    async with open_asked(common) as asked:
        await asked.signal(request)
    say(f"signalled {action}")
    return ExitCode.OK


async def report_status(
    common: CommonOptions,
    action: str,
    phase: str,
    attempt: int,
    message: str,
    error: ErrorState | None,
) -> int:
    """Say how far an action is."""
    request = pb.UpdateRequest(action_id=identifier(action), attempt=attempt)
    request.status.phase = Phase[phase].value
    request.status.attempts = attempt
    async with open_asked(common) as asked:
        if isinstance(asked, Directly):
            await asked.client.put_status(
                request.action_id, attempt, request.status, error=error, message=message
            )
        elif error is not None or message:
            raise ConfigError(
                "--error-code, --error-message and --message: the service has no field for them: "
                "leave out --service"
            )
        else:
            await asked.update(request)
    say(f"{action} is {phase} in attempt {attempt}")
    return ExitCode.OK


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
            raise InputError(f"{name}: no EnqueueRequest, and no Action: {why}") from None
    read = _binary(data)
    if read is None:
        raise InputError(f"{name}: no EnqueueRequest, and no Action, in JSON or in binary")
    return read


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
    """The request of protobuf's JSON.

    Raises:
        ValueError: It is none.
    """
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
        # protobuf's reader takes the shape of some fields for granted.
        raise ValueError(f"a field has a value of another kind: {error}") from None
    return request


def _binary(data: bytes) -> pb.EnqueueRequest | None:
    """The request; nothing says which of the two it is, but only one of them has a spec then."""
    for of_action in (False, True):
        request = pb.EnqueueRequest()
        try:
            (request.action if of_action else request).ParseFromString(data)
        except BadMessage:
            continue
        if request.action.WhichOneof("spec") is not None:
            return request
    return None


def literal_of(text: str, kind: str) -> Literal:
    """A signal's value.

    Args:
        text: The value.
        kind: ``bool``, ``int``, ``float`` or ``str``; ``auto`` for what it looks like.

    Raises:
        ConfigError: It is none of that kind.
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
            f"{quoted(text)} is no {kind}: give another value, or another --type"
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
        raise ValueError(f"{text} is no number")
    return text
