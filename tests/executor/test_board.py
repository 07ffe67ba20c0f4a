"""Which action is next: the board, told of states in any order."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions import ActionId, ActionUpdate, Phase
from etcd_actions.executor.scheduling.board import Board

NAMES = ("a0", "c1", "c2", "g1", "g2", "g3")
PARENTS = {"a0": "", "c1": "a0", "c2": "a0", "g1": "c1", "g2": "c1", "g3": "c2"}


def update(
    name: str,
    revision: int,
    phase: Phase = Phase.QUEUED,
    *,
    deleted: bool = False,
    kind: str = "task",
) -> ActionUpdate:
    return ActionUpdate(
        key=f"/x/flyte/r1-{name}".encode(),
        namespace="flyte",
        name=f"r1-{name}",
        action_id=ActionId("p", "d", "r1", name),
        parent=PARENTS[name],
        phase=phase,
        attempts=1,
        cache_status=0,
        output_uri="",
        uid=name,
        create_revision=NAMES.index(name) + 1,
        revision=revision,
        recorded=False,
        is_deleted=deleted,
        action_type=kind,
    )


def within(namespace: str, of: ActionUpdate) -> ActionUpdate:
    """The same in a namespace, as the executor calls it."""
    return msgspec.structs.replace(of, namespace=namespace, name=f"{namespace}/{of.name}")


def test_actions_of_one_name_in_two_namespaces_are_kept_apart() -> None:
    board = Board()
    for namespace in ("one", "two"):
        assert board.note(within(namespace, update("a0", 10)))
    board.note(within("one", update("c1", 11)))
    assert board.children("one/r1-a0") == {"one/r1-c1"}
    assert not board.is_waiting("two/r1-a0")
    board.note(within("two", update("a0", 12, Phase.SUCCEEDED)))
    assert board.get("one/r1-a0") is not None


def board_of(*names: str) -> Board:
    board = Board()
    for name in names:
        assert board.note(update(name, 10))
    return board


def test_the_deepest_and_oldest_is_next() -> None:
    board = board_of(*NAMES)
    ordered = sorted(board.names(), key=board.order)
    assert ordered == ["r1-g1", "r1-g2", "r1-g3", "r1-c1", "r1-c2", "r1-a0"]


def test_an_action_waits_while_it_has_children_that_are_not_over() -> None:
    board = board_of("a0", "c1")
    assert board.is_waiting("r1-a0")
    assert not board.is_waiting("r1-c1")
    board.note(update("c1", 11, Phase.SUCCEEDED))
    assert not board.is_waiting("r1-a0")


def test_children_that_come_first_are_their_parents_all_the_same() -> None:
    board = board_of("c1", "c2", "a0")
    assert board.children("r1-a0") == {"r1-c1", "r1-c2"}


def test_children_of_what_is_over_are_remembered() -> None:
    board = board_of("a0", "c1", "c2")
    board.note(update("a0", 11, Phase.FAILED))
    assert board.get("r1-a0") is None
    assert board.children("r1-a0") == {"r1-c1", "r1-c2"}
    board.note(update("c1", 12, Phase.ABORTED))
    board.note(update("c2", 12, Phase.ABORTED, deleted=True))
    assert board.children("r1-a0") == set()


def test_conditions_count_and_traces_do_not() -> None:
    board = board_of("a0")
    board.note(update("c1", 11, Phase.PAUSED, kind="condition"))
    assert not board.note(update("c2", 12, kind="trace"))
    assert board.is_waiting("r1-a0")
    known = board.get("r1-c1")
    assert known is not None
    assert known.is_condition


def test_older_states_are_no_news() -> None:
    board = board_of("a0")
    assert not board.note(update("a0", 9, Phase.RUNNING))
    assert not board.note(update("a0", 10, Phase.RUNNING))
    assert board.note(update("a0", 12, Phase.SUCCEEDED))
    # A state that was on its way when it ended does not revive it.
    assert not board.note(update("a0", 11, Phase.RUNNING))
    assert len(board) == 0


def test_another_incarnation_begins_anew() -> None:
    board = board_of("a0")
    board.note(update("a0", 11, deleted=True))
    assert board.note(msgspec.structs.replace(update("a0", 12), create_revision=12, uid="new"))
    known = board.get("r1-a0")
    assert known is not None
    assert known.update.uid == "new"


STATES = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.sampled_from([Phase.QUEUED, Phase.RUNNING, Phase.SUCCEEDED, Phase.FAILED]),
    ),
    max_size=40,
)


@given(STATES, st.randoms(use_true_random=False))
def test_any_order_comes_to_the_same(states: list[tuple[str, Phase]], random: object) -> None:
    """What is open at the end, and who waits, follows from the newest states alone."""
    told = []
    newest: dict[str, Phase] = {}
    for revision, (name, phase) in enumerate(states, start=1):
        if name in newest and newest[name].is_terminal:
            continue
        newest[name] = phase
        told.append(update(name, revision, phase))
    random.shuffle(told)  # type: ignore[attr-defined]
    board = Board()
    for each in told:
        board.note(each)
    open_ = {f"r1-{name}" for name, phase in newest.items() if not phase.is_terminal}
    assert set(board.names()) == open_
    for name in open_:
        below = {
            f"r1-{child}" for child, parent in PARENTS.items() if f"r1-{parent}" == name
        } & open_
        assert board.children(name) == below
        assert board.is_waiting(name) == bool(below)


def test_in_another_store_older_revisions_are_news() -> None:
    board = board_of("a0", "c1")
    board.note(update("c1", 11, Phase.SUCCEEDED))
    assert not board.note(update("a0", 3, Phase.RUNNING))
    assert not board.note(update("c1", 3, Phase.RUNNING))
    board.forget_revisions()
    assert board.note(update("a0", 3, Phase.RUNNING))
    assert board.note(update("c1", 4, Phase.RUNNING))
    assert board.children("r1-a0") == {"r1-c1"}
