"""``enqueue``, ``abort``, ``signal`` and ``status``: what changes one action."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from flyteidl2.actions import actions_service_pb2 as pb
from flyteidl2.core.literals_pb2 import Literal, Primitive, Scalar
from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError as BadMessage

from etcd_actions.cli.asking import Directly, action_named, identifier, open_asked
from etcd_actions.cli.exits import ExitCode, say
from etcd_actions.cli.options import Common
from etcd_actions.errors import ConfigError, InputError
from etcd_actions.model import ErrorState, Phase


async def enqueue_file(common: Common, file: str) -> int:
    """Create the action that a file describes."""
    request = read_request(file)
    async with open_asked(common) as asked:
        await asked.enqueue(request)
    action_id = request.action.action_id
    run = action_id.run
    say(f"enqueued {run.project}/{run.domain}/{run.name}/{action_id.name}")
    return ExitCode.OK


async def abort_action(common: Common, action: str, reason: str, by: str) -> int:
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


async def signal_condition(common: Common, action: str, value: str, kind: str, by: str) -> int:
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
    common: Common,
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
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"{file}: {error.strerror}") from None
    request = pb.EnqueueRequest()
    if data.lstrip()[:1] == b"{":
        try:
            tree: dict[str, Any] = json.loads(data)
            is_request = "action" in tree
            Parse(data, request if is_request else request.action)
        except (ValueError, ParseError) as error:
            why = " ".join(str(error).split())
            raise InputError(f"{file}: no EnqueueRequest, and no Action: {why}") from None
        return request
    read = _binary(data)
    if read is None:
        raise InputError(f"{file}: no EnqueueRequest, and no Action, in JSON or in binary")
    return read


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
                primitive = Primitive(integer=int(text))
            case "float":
                primitive = Primitive(float_value=float(text))
            case _:
                primitive = Primitive(string_value=text)
    except (KeyError, ValueError):
        raise ConfigError(f"{text!r} is no {kind}: give another value, or another --type") from None
    return Literal(scalar=Scalar(primitive=primitive))


def _looks_like(text: str) -> str:
    if text.lower() in ("true", "false"):
        return "bool"
    for name, parse in (("int", int), ("float", float)):
        try:
            parse(text)
        except ValueError:
            continue
        return name
    return "str"
