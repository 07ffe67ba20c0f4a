"""signal: the value that a condition waits for, exactly once."""

from __future__ import annotations

import base64
from collections import Counter
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
import trio

from etcd_actions import open_etcd
from etcd_actions.actions.signal import signal
from etcd_actions.actions.status import ActionStatus, put_status
from etcd_actions.actions.stored_action import StoredAction
from etcd_actions.codecs import Codec, json
from etcd_actions.errors import (
    DecodeError,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
)
from etcd_actions.etcd.api import Etcd, KeyRange
from etcd_actions.etcd.connection_settings import TransportName
from etcd_actions.model import Keyspace, Phase, flyte
from etcd_actions.storage.store import Store
from etcd_actions.testing import EtcdServer
from tests.actions.stored import (
    CONDITION,
    T0,
    TASK,
    LostAnswers,
    Overtaken,
    Tree,
    at_t0,
    captured,
    store_tree,
    stored_tree,
    stored_value,
    with_unknown_fields,
)
from tests.codecs.strategies import CODECS
from tests.data.captured import PUTS
from tests.support import oracle

pytestmark = pytest.mark.memory

if TYPE_CHECKING:
    from flyteidl2.core.literals_pb2 import Literal

identity_pb2 = pytest.importorskip("flyteidl2.common.identity_pb2")
literals_pb2 = pytest.importorskip("flyteidl2.core.literals_pb2")
types_pb2 = pytest.importorskip("flyteidl2.core.types_pb2")
run_definition_pb2 = pytest.importorskip("flyteidl2.workflow.run_definition_pb2")

ALICE = "alice@example.com"


def literal(value: bool | int | float | str) -> Literal:
    """A scalar primitive."""
    made: Literal = literals_pb2.Literal()
    primitive = made.scalar.primitive
    if isinstance(value, bool):
        primitive.boolean = value
    elif isinstance(value, int):
        primitive.integer = value
    elif isinstance(value, float):
        primitive.float_value = value
    else:
        primitive.string_value = value
    return made


def paused() -> Tree:
    """The captured condition while it waits, as the executor left it."""
    signalled = next(put for put in PUTS if b'"signalValue"' in put.value)
    before = [p for p in PUTS if p.key == signalled.key and p.mod_revision < signalled.mod_revision]
    return json.decode_tree(before[-1].value)


def declaring(simple: int) -> Tree:
    """A condition that waits for another type."""
    tree = paused()
    spec = run_definition_pb2.ConditionAction(name="c1", type=types_pb2.LiteralType(simple=simple))
    tree["spec"]["conditionSpec"] = base64.b64encode(spec.SerializeToString()).decode()
    return tree


async def send(
    etcd: Etcd, keys: Keyspace, value: Literal | None = None, by: str = ALICE
) -> StoredAction:
    return await signal(
        Store(etcd), keys, CONDITION, literal(True) if value is None else value, by, clock=at_t0
    )


async def writes(etcd: Etcd, keys: Keyspace) -> int:
    return len(await oracle.read_history(etcd, KeyRange.of_key(keys.task_action(CONDITION))))


class TestSignal:
    """Upstream's TestSignal, sub-test by sub-test."""

    async def test_happy_path_persists_three_fields(
        self, shared_etcd: EtcdServer, transport: TransportName, keys: Keyspace
    ) -> None:
        async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
            await store_tree(etcd, keys, CONDITION, paused())
            written = await send(etcd, keys)
            assert flyte.signal_value(written) == literal(True)
            assert written.status.signalled_by == ALICE
            assert written.status.signal_time == T0
            kv = await Store(etcd).get(keys.task_action(CONDITION))
            assert kv is not None
            assert kv.mod_revision == written.revision
            assert json.decode(kv.value).status == written.status

    async def test_empty_literal_is_an_invalid_argument(self, etcd: Etcd, keys: Keyspace) -> None:
        """Also of an action that there is not: the value is looked at first."""
        with pytest.raises(InvalidArgument, match="value"):
            await send(etcd, keys, literals_pb2.Literal())

    async def test_not_found(self, etcd: Etcd, keys: Keyspace) -> None:
        with pytest.raises(NotFound, match="c1 of run flytesnacks/development/rcond0000001"):
            await send(etcd, keys)

    async def test_not_a_condition_is_a_failed_precondition(
        self, etcd: Etcd, keys: Keyspace
    ) -> None:
        await store_tree(etcd, keys, TASK, captured(TASK))
        with pytest.raises(FailedPrecondition, match="is a task"):
            await signal(Store(etcd), keys, TASK, literal(True))

    async def test_type_mismatch_is_an_invalid_argument(self, etcd: Etcd, keys: Keyspace) -> None:
        await store_tree(etcd, keys, CONDITION, paused())
        with pytest.raises(InvalidArgument, match=r"of type STRING.* waits for type BOOLEAN"):
            await send(etcd, keys, literal("yes"))
        assert await stored_tree(etcd, keys, CONDITION) == paused()

    async def test_the_same_value_is_idempotent(self, etcd: Etcd, keys: Keyspace) -> None:
        """Whoever says it again, and after the end: the first one's name stays."""
        await store_tree(etcd, keys, CONDITION, paused())
        first = await send(etcd, keys)
        again = await send(etcd, keys, by="bob@example.com")
        assert again.revision == first.revision
        assert again.status.signalled_by == ALICE

    async def test_a_different_value_is_a_failed_precondition(
        self, etcd: Etcd, keys: Keyspace
    ) -> None:
        await store_tree(etcd, keys, CONDITION, paused())
        first = await send(etcd, keys)
        with pytest.raises(FailedPrecondition, match=f"another value by {ALICE}"):
            await send(etcd, keys, literal(False))
        # The type is looked at later.
        with pytest.raises(FailedPrecondition, match="another value"):
            await send(etcd, keys, literal("yes"))
        assert (await send(etcd, keys)).revision == first.revision

    async def test_already_terminal_is_a_failed_precondition(
        self, etcd: Etcd, keys: Keyspace
    ) -> None:
        await store_tree(etcd, keys, CONDITION, paused())
        await put_status(Store(etcd), keys, CONDITION, 1, ActionStatus(Phase.TIMED_OUT))
        with pytest.raises(FailedPrecondition, match="has ended as TIMED_OUT"):
            await send(etcd, keys)


# --- what is written --------------------------------------------------------------------


async def test_it_is_what_the_executor_leaves_in_the_end(etcd: Etcd, keys: Keyspace) -> None:
    """The captured condition, when it was signalled, ended and labelled: three writes there.

    All but the plugin's counter, which is the executor's own, and who set which field.
    """
    labelled = next(
        put
        for put in PUTS
        if put.key.endswith(b"rcond0000001-c1") and b"termination-status" in put.value
    )
    wanted = json.decode_tree(labelled.value)
    await store_tree(etcd, keys, CONDITION, paused())
    await send(etcd, keys)
    value = await stored_value(etcd, keys, CONDITION)
    found = json.decode_tree(value)
    assert found["status"].pop("pluginPhaseVersion") + 1 == wanted["status"].pop(
        "pluginPhaseVersion"
    )
    assert found["metadata"].pop("managedFields") == paused()["metadata"]["managedFields"]
    del wanted["metadata"]["managedFields"]
    assert json.encode_tree(found) == json.encode_tree(wanted)


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
async def test_nothing_else_changes(etcd: Etcd, keys: Keyspace, codec: Codec) -> None:
    tree = with_unknown_fields(paused())
    await store_tree(etcd, keys, CONDITION, tree, codec)
    written = await send(etcd, keys)
    assert written.phase is Phase.SUCCEEDED
    value = await stored_value(etcd, keys, CONDITION)
    assert value[:3] == codec.encode_tree(tree)[:3]
    found = codec.decode_tree(value)
    ours = {"signalValue", "signalledAt", "signalledBy", "conditions", "phaseHistory"}
    before, after = tree.pop("status"), found.pop("status")
    assert {field: item for field, item in after.items() if field not in ours} == {
        field: item for field, item in before.items() if field not in ours
    }
    for label in ("flyte.org/termination-status", "flyte.org/completed-time"):
        del found["metadata"]["labels"][label]
    assert found == tree


async def test_a_condition_that_nobody_paused_is_signalled(etcd: Etcd, keys: Keyspace) -> None:
    """Without an executor a condition has no status at all."""
    await store_tree(etcd, keys, CONDITION, captured(CONDITION))
    written = await send(etcd, keys, by="")
    assert written.phase is Phase.SUCCEEDED
    tree = await stored_tree(etcd, keys, CONDITION)
    assert "signalledBy" not in tree["status"]


@pytest.mark.parametrize(
    ("user", "application", "subject"),
    [("alice", "", "alice"), ("", "app", "app"), ("", "", "")],
)
async def test_an_identity_signals_by_its_subject(
    etcd: Etcd, keys: Keyspace, user: str, application: str, subject: str
) -> None:
    identity = identity_pb2.EnrichedIdentity()
    if user:
        identity.user.id.subject = user
    if application:
        identity.application.id.subject = application
    await store_tree(etcd, keys, CONDITION, paused())
    written = await signal(Store(etcd), keys, CONDITION, literal(True), identity)
    assert written.status.signalled_by == subject


async def test_a_signal_of_flytes_service_is_finished(etcd: Etcd, keys: Keyspace) -> None:
    """It leaves the end to an executor; where there is none, the signal again does it."""
    signalled = next(put for put in PUTS if b'"signalValue"' in put.value)
    tree = json.decode_tree(signalled.value)
    revision = await store_tree(etcd, keys, CONDITION, tree)
    written = await signal(
        Store(etcd), keys, CONDITION, literal(True), "bob", clock=lambda: T0 + timedelta(hours=1)
    )
    assert written.revision > revision
    assert written.phase is Phase.SUCCEEDED
    assert (written.status.signalled_by, written.status.signal_time) == (ALICE, T0)


@pytest.mark.parametrize(
    ("simple", "value"),
    [
        (1, 2**62),
        (2, 0.1),
        (2, float("nan")),
        (2, float("-inf")),
        (3, ""),
        (3, "naïve ✓"),
        (4, False),
    ],
)
async def test_every_primitive(
    etcd: Etcd, keys: Keyspace, simple: int, value: bool | int | float | str
) -> None:
    """Sent twice, to see it recognised: not even a NaN is another value."""
    await store_tree(etcd, keys, CONDITION, declaring(simple))
    written = await send(etcd, keys, literal(value))
    assert written.status.signal_value_bytes == literal(value).SerializeToString()
    assert (await send(etcd, keys, literal(value))).revision == written.revision


@pytest.mark.parametrize("stored", ["not base64", "AAAA"])
async def test_a_value_that_nobody_can_read_is_none(
    etcd: Etcd, keys: Keyspace, stored: str
) -> None:
    tree = paused()
    tree["status"]["signalValue"] = stored
    await store_tree(etcd, keys, CONDITION, tree)
    assert flyte.signal_value(await send(etcd, keys)) == literal(True)


# --- what is refused --------------------------------------------------------------------


def _others() -> list[Literal]:
    made: list[Literal] = [literals_pb2.Literal() for _ in range(5)]
    made[0].scalar.primitive.datetime.seconds = 1
    made[1].scalar.primitive.duration.seconds = 1
    made[2].scalar.primitive.SetInParent()
    made[3].scalar.none_type.SetInParent()
    made[4].collection.literals.append(literal(True))
    return made


@pytest.mark.parametrize(
    "value", _others(), ids=["datetime", "duration", "empty", "none", "collection"]
)
async def test_no_other_value_is_a_signal(etcd: Etcd, keys: Keyspace, value: Literal) -> None:
    await store_tree(etcd, keys, CONDITION, paused())
    with pytest.raises(InvalidArgument, match="give a boolean"):
        await send(etcd, keys, value)


async def test_a_condition_without_a_type_cannot_be_signalled(etcd: Etcd, keys: Keyspace) -> None:
    tree = paused()
    del tree["spec"]["conditionSpec"]
    await store_tree(etcd, keys, CONDITION, tree)
    with pytest.raises(InvalidArgument, match="no type that can be signalled"):
        await send(etcd, keys)


async def test_a_broken_condition_is_told_with_its_key(etcd: Etcd, keys: Keyspace) -> None:
    tree = paused()
    tree["spec"]["conditionSpec"] = "AAAA"
    revision = await store_tree(etcd, keys, CONDITION, tree)
    with pytest.raises(DecodeError, match=rf"c1 at revision {revision}: spec\.conditionSpec"):
        await send(etcd, keys)


async def test_a_value_too_large_for_etcd_is_refused(etcd: Etcd, keys: Keyspace) -> None:
    """Not as etcd's own error, which the SDK would retry for ever."""
    await store_tree(etcd, keys, CONDITION, declaring(3))
    with pytest.raises(InvalidArgument, match="value: with it the object has"):
        await send(etcd, keys, literal("x" * 1_200_000))


# --- others write, too ------------------------------------------------------------------


async def test_twenty_with_the_same_value_write_once(
    shared_etcd: EtcdServer, transport: TransportName, keys: Keyspace
) -> None:
    async with open_etcd(shared_etcd.endpoint, transport=transport) as etcd:
        await store_tree(etcd, keys, CONDITION, paused())
        revisions: set[int] = set()

        async def one(number: int) -> None:
            revisions.add((await send(etcd, keys, by=f"user{number}")).revision)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
        assert len(revisions) == 1
        assert await writes(etcd, keys) == 2


async def test_of_twenty_values_one_counts(etcd: Etcd, keys: Keyspace) -> None:
    await store_tree(etcd, keys, CONDITION, declaring(1))
    outcomes: Counter[str] = Counter()

    async def one(number: int) -> None:
        try:
            await send(etcd, keys, literal(number), by=f"user{number}")
        except FailedPrecondition:
            outcomes["refused"] += 1
        else:
            outcomes[f"user{number}"] += 1

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(one, number)
    assert outcomes.pop("refused") == 19
    action = json.decode(await stored_value(etcd, keys, CONDITION))
    assert dict(outcomes) == {action.status.signalled_by: 1}


async def test_the_executor_writes_meanwhile(etcd: Etcd, keys: Keyspace) -> None:
    """Upstream gives up after five conflicts; an update lost is a run that hangs for ever."""

    def edit(tree: Tree) -> None:
        tree["status"]["pluginPhaseVersion"] += 1

    await store_tree(etcd, keys, CONDITION, paused())
    overtaken = Overtaken(etcd, keys.task_action(CONDITION), edit, 50)
    version = paused()["status"]["pluginPhaseVersion"]
    written = await signal(Store(etcd, overtaken), keys, CONDITION, literal(True), ALICE)
    assert overtaken.calls == 51
    assert written.phase is Phase.SUCCEEDED
    assert written.status.plugin_phase_version == version + 50


async def test_a_time_out_that_was_faster_wins(etcd: Etcd, keys: Keyspace) -> None:
    def edit(tree: Tree) -> None:
        _, ended = tree["status"]["conditions"] = [
            {**tree["status"]["conditions"][0], "status": "False", "reason": "TimedOut"},
            {**tree["status"]["conditions"][0], "type": "Failed", "reason": "TimedOut"},
        ]
        assert ended["status"] == "True"

    await store_tree(etcd, keys, CONDITION, paused())
    store = Store(etcd, Overtaken(etcd, keys.task_action(CONDITION), edit, 1))
    with pytest.raises(FailedPrecondition, match="TIMED_OUT"):
        await signal(store, keys, CONDITION, literal(True))


@pytest.mark.parametrize("applied", [True, False], ids=["applied", "not-applied"])
async def test_a_lost_answer(etcd: Etcd, keys: Keyspace, applied: bool) -> None:
    await store_tree(etcd, keys, CONDITION, paused())
    store = Store(etcd, LostAnswers(etcd, applied=applied))
    if not applied:
        with pytest.raises(OutcomeUnknown):
            await signal(store, keys, CONDITION, literal(True), ALICE)
    written = await signal(store, keys, CONDITION, literal(True), ALICE)
    assert written.phase is Phase.SUCCEEDED
    assert await writes(etcd, keys) == 2
