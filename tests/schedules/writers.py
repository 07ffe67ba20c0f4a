"""Those who enqueue, report, signal, abort and delete: by wire, or by the library in etcd."""

from __future__ import annotations

import http.client
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import trio
from flyteidl2.actions import actions_service_pb2 as pb
from google.protobuf.message import Message

from etcd_actions import ActionId, ActionsClient, Phase
from etcd_actions.actions.aborted_object import set_deletion_timestamp
from etcd_actions.codecs import codec_of
from etcd_actions.errors import ActionError, EtcdError, NotFound, UnexpectedFailure
from etcd_actions.etcd.api import Compare, CompareResult, CompareTarget, Etcd, KeyRange, Put, Txn
from etcd_actions.model import Keyspace
from tests.schedules import foreign
from tests.schedules.plan import PHASES, Step
from tests.server.clients import ConnectClient, Failed, GrpcClient
from tests.support import flyte

PATIENCE = 6.0
"""Seconds for which a write is tried."""
CALL = 2.0
DIRECT = ("delete", "ask-deletion", "put-back", "put-end", "copy", "orphan")
"""What is done in etcd, by no method of ours."""
_PAUSE = 0.2
_TRIES = 4
PROJECT, DOMAIN = "p", "d"

# What a caller takes for an answer; everything else is tried again.
_FINAL = {
    "invalid_argument",
    "not_found",
    "already_exists",
    "failed_precondition",
    "aborted",
    "data_loss",
}


class Refused(Exception):
    """It was answered, and not done."""


class Unanswered(Exception):
    """Nobody knows."""


@dataclass
class Write:
    """One thing that somebody wanted.

    Attributes:
        step: What.
        outcome: ``done``, ``refused`` or, as long as nothing else is known, ``unknown``.
        detail: What was answered last.
        tries: How often it was sent.
        sent: When it was sent last, in ``time.monotonic``'s seconds.
        first: When it was sent first.
        faults: Answers that nobody should ever get.
    """

    step: Step
    outcome: str = "unknown"
    detail: str = ""
    tries: int = 0
    sent: float = 0.0
    first: float = 0.0
    faults: str = ""

    @property
    def action(self) -> tuple[str, str]:
        """Which action it is about."""
        return self.step.args["run"], self.step.args["name"]


class Ways(NamedTuple):
    """How writers reach what they write to.

    Attributes:
        addresses: Of the processes.
        library: A client of its own, directly in etcd.
        etcd: The same etcd.
        keys: Where the objects are.
    """

    addresses: list[str]
    library: ActionsClient
    etcd: Etcd
    keys: Keyspace


async def write(ways: Ways, done: Write) -> None:
    """Try until it is answered, or patience ends."""
    step = done.step
    with trio.move_on_after(PATIENCE):
        while done.outcome == "unknown":
            done.tries += 1
            done.sent = time.monotonic()
            done.first = done.first or done.sent
            # As behind a balancer of load: who gets no answer is sent to another one.
            library = done.tries % _TRIES == 0 or step.args["via"] == "library"
            direct = step.what in DIRECT
            attempt = _by_library if library or direct else _by_wire
            try:
                await attempt(ways, step)
            except Refused as error:
                done.outcome, done.detail = "refused", str(error)
                if str(error).startswith("internal"):
                    done.faults = str(error)
            except Unanswered as error:
                done.detail = str(error)
                await trio.sleep(_PAUSE)
            else:
                done.outcome = "done"


def action_id(step: Step) -> ActionId:
    """Which action a step is about."""
    return ActionId(PROJECT, DOMAIN, step.args["run"], step.args["name"])


def _action(step: Step) -> pb.Action:
    parent = step.args["parent"].strip("-")
    if step.args["kind"] != "condition":
        return flyte.task(action_id(step), parent)
    action = flyte.condition(action_id(step), parent)
    if "timeout" in step.args:
        action.condition.timeout.FromMilliseconds(round(float(step.args["timeout"]) * 1000))
    return action


def _status(step: Step) -> tuple[int, Any]:
    attempt = int(step.args["attempt"])
    return attempt, flyte.status(Phase(PHASES[step.args["phase"]]), attempt)


async def _by_library(ways: Ways, step: Step) -> None:
    client, target = ways.library, action_id(step)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "enqueue": lambda: client.enqueue(_action(step)),
        "status": lambda: client.put_status(target, *_status(step)),
        "signal": lambda: client.signal(target, flyte.boolean(step.args["value"] == "true"), "al"),
        "abort": lambda: client.abort_action(target, "scripted", "al"),
        "delete": lambda: ways.etcd.delete(KeyRange.of_key(ways.keys.task_action(target))),
        "ask-deletion": lambda: _ask_deletion(ways, target),
        "put-back": lambda: foreign.put_back(ways.etcd, ways.keys, target, step),
        "put-end": lambda: foreign.put_end(ways.etcd, ways.keys, target, step),
        "copy": lambda: foreign.copy(ways.etcd, ways.keys, target, step),
        "orphan": lambda: foreign.orphan(ways.etcd, ways.keys, target),
    }
    try:
        await calls[step.what]()
    except UnexpectedFailure as error:
        raise Refused(f"internal: {error}") from error
    except ActionError as error:
        raise Refused(f"{type(error).__name__}: {error}") from error
    except EtcdError as error:
        raise Unanswered(f"{type(error).__name__}: {error}") from error


async def _ask_deletion(ways: Ways, target: ActionId) -> None:
    """Ask for the deletion of an object, as an API server does: the finalizers decide when."""
    key = ways.keys.task_action(target)
    while True:
        found = (await ways.etcd.range(KeyRange.of_key(key))).kvs
        if not found:
            raise NotFound(f"there is no {target}")
        codec = codec_of(found[0].value)
        tree = codec.decode_tree(found[0].value)
        set_deletion_timestamp(tree, datetime.now(UTC))
        unchanged = Compare(
            key, CompareTarget.MOD_REVISION, CompareResult.EQUAL, found[0].mod_revision
        )
        put = Put(key, codec.encode_tree(tree), found[0].lease)
        if (await ways.etcd.txn(Txn([unchanged], [put]))).succeeded:
            return


async def _by_wire(ways: Ways, step: Step) -> None:
    kind, _, process = step.args["via"].partition(":")
    address = ways.addresses[int(process)]
    method, request = _request(step)
    with trio.move_on_after(CALL + 1) as scope:
        await trio.to_thread.run_sync(_call, kind, address, method, request, abandon_on_cancel=True)
    if scope.cancelled_caught:
        raise Unanswered("no answer")


def _call(kind: str, address: str, method: str, request: Message) -> None:
    made = GrpcClient if kind == "grpc" else ConnectClient
    client = made(address, deadline=CALL)
    try:
        client.call(method, request)
    except Failed as error:
        if error.code in _FINAL or error.code == "internal":
            raise Refused(f"{error.code}: {error.message}") from error
        raise Unanswered(f"{error.code}: {error.message}") from error
    except (OSError, http.client.HTTPException) as error:
        raise Unanswered(repr(error)) from error
    finally:
        client.close()


def _request(step: Step) -> tuple[str, Message]:
    identifier = flyte.identifier(action_id(step))
    match step.what:
        case "enqueue":
            return "Enqueue", pb.EnqueueRequest(action=_action(step))
        case "status":
            attempt, status = _status(step)
            request = pb.UpdateRequest(action_id=identifier, attempt=attempt, status=status)
            return "Update", request
        case "signal":
            value = flyte.boolean(step.args["value"] == "true")
            return "Signal", pb.SignalRequest(action_id=identifier, value=value)
        case "abort":
            return "Abort", pb.AbortRequest(action_id=identifier, reason="scripted")
        case _:
            raise ValueError(f"{step.what} is not a write")
