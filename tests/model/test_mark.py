"""What the label of a recorded ending is worth, by the annotation that says which one it was."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.codecs import Codec
from etcd_actions.model import (
    ANNOTATION_RECORDED,
    LABEL_TERMINAL_STATUS_RECORDED,
    Phase,
    State,
    build_action_update,
    details_digest,
    mark_number,
    mark_text,
    subject_digest,
    summarize,
)
from etcd_actions.model.conditions import write_phase
from etcd_actions.model.mark import NOTHING, read_state
from etcd_actions.model.taskaction import ErrorState
from etcd_actions.record.recorder import TerminalState
from tests.codecs.strategies import CODECS, JSON
from tests.data.captured import PUTS
from tests.support.endings import captured
from tests.support.everyday import examples
from tests.support.table import table

NOW = datetime(2026, 11, 28, tzinfo=UTC)
WHO = subject_digest("p", "d", "r", "a1", "u")
OTHER = subject_digest("p", "d", "r", "a1", "v")
WHY = details_digest(ErrorState("c", "USER", "m"), "", "")
MARK = mark_text(Phase.FAILED, 2, 7, WHO, WHY)
each_codec = pytest.mark.parametrize("codec", CODECS, ids=lambda codec: codec.name)
all_codecs = table("codec", CODECS, ids=lambda codec: codec.name)


def read(
    mark: str | None, phase: Phase, attempts: int = 2, revision: int = 7, details: str = WHY
) -> tuple[Phase, int, bool, bool, bool]:
    return read_state(mark, phase, attempts, revision, WHO, details)[:5]


@table("phase", list(Phase))
def test_without_an_annotation_the_label_counts_on_any_ending(phase: Phase) -> None:
    assert read(None, phase) == (phase, 2, phase.is_terminal, False, not phase.is_terminal)


@pytest.mark.parametrize(
    ("mark", "phase", "attempts", "revision", "details"),
    [
        (MARK, Phase.FAILED, 2, 7, WHY),
        # Who read it does not know the key's revision, or who wrote the mark did not.
        (MARK, Phase.FAILED, 2, 0, WHY),
        (mark_text(Phase.FAILED, 2, 0, WHO, WHY), Phase.FAILED, 2, 7, WHY),
        # Nobody counted: it is the first attempt.
        (mark_text(Phase.FAILED, 1, 7, WHO, ""), Phase.FAILED, 0, 7, ""),
    ],
)
def test_the_ending_that_the_mark_says_is_recorded(
    mark: str, phase: Phase, attempts: int, revision: int, details: str
) -> None:
    assert read(mark, phase, attempts, revision, details) == (phase, attempts, True, False, False)


@pytest.mark.parametrize(
    ("phase", "attempts", "revision", "details"),
    [
        (Phase.ABORTED, 2, 7, WHY),
        (Phase.FAILED, 3, 7, WHY),
        (Phase.FAILED, 1, 7, WHY),
        (Phase.FAILED, 2, 8, WHY),
        (Phase.FAILED, 2, 7, ""),
        (Phase.FAILED, 2, 7, OTHER),
    ],
    ids=["phase", "later attempt", "earlier attempt", "incarnation", "no error", "error"],
)
def test_another_ending_is_not_recorded(
    phase: Phase, attempts: int, revision: int, details: str
) -> None:
    assert read(MARK, phase, attempts, revision, details) == (phase, attempts, False, False, False)


@table("phase", [phase for phase in Phase if not phase.is_terminal])
@table("attempts", [0, 1, 2])
def test_an_older_status_says_the_ending_that_was_recorded(phase: Phase, attempts: int) -> None:
    """Whatever its details were: they went with the status."""
    assert read(MARK, phase, attempts, details="") == (Phase.FAILED, 2, True, True, False)


@pytest.mark.parametrize(
    ("mark", "attempts", "revision"),
    [
        (MARK, 3, 7),
        (MARK, 2, 8),
        (mark_text(Phase.FAILED, 2, 7, OTHER, WHY), 2, 7),
    ],
    ids=["newer attempt", "made again", "another uid"],
)
def test_a_newer_attempt_and_another_incarnation_go_on(
    mark: str, attempts: int, revision: int
) -> None:
    going_on = (Phase.RUNNING, attempts, False, False, False)
    assert read(mark, Phase.RUNNING, attempts, revision) == going_on


@table(
    "mark",
    [
        "",
        NOTHING,
        "true",
        MARK.upper(),
        MARK + " ",
        " " + MARK,
        MARK.replace("/2", "/02"),
        MARK.replace("/2", "/-2"),
        MARK.replace("/2", "/" + "9" * 5000),
        MARK.replace(" 7 ", " " + "9" * 5000 + " "),
        MARK.replace("FAILED", "RUNNING"),
        MARK.replace("FAILED", "FALLEN"),
    ],
)
@table("phase", [Phase.FAILED, Phase.RUNNING])
def test_a_malformed_mark_is_as_no_label(mark: str, phase: Phase) -> None:
    """It is told once more, which harms nobody."""
    assert read(mark, phase) == (phase, 2, False, False, False)


@settings(max_examples=examples(50))
@given(st.text() | st.from_regex(r"[A-Z]+/\d+ \d+ \w+( \w+)?"), st.sampled_from(list(Phase)))
def test_no_mark_fails(mark: str, phase: Phase) -> None:
    assert isinstance(read_state(mark, phase, 1, 7, WHO, WHY), State)


def test_a_mark_is_about_one_action() -> None:
    """Copied to another key, or to another action of a shared key, it counts for nothing."""
    parts = ("p", "d", "r", "a1", "u")
    others = [tuple("x" if at == n else part for n, part in enumerate(parts)) for at in range(5)]
    assert len({subject_digest(*each) for each in (parts, *others)}) == 6
    assert subject_digest("p", "d", "r", "a1x", "") != subject_digest("p", "d", "r", "a1", "x")


# --- in each stored form ------------------------------------------------------------------


def stored(codec: Codec, tree: dict[str, Any], mark: str | None = None) -> bytes:
    value = codec.encode_tree(tree)
    annotations = {} if mark is None else {ANNOTATION_RECORDED: mark}
    label = (LABEL_TERMINAL_STATUS_RECORDED, "true")
    return codec.release(value, *label, None, annotations=annotations).value


def in_phase(phase: Phase, **status: Any) -> dict[str, Any]:
    tree = captured(Phase.RUNNING)
    write_phase(tree, phase, now=NOW)
    tree["status"].update(status)
    return tree


ENDED = [
    in_phase(Phase.SUCCEEDED),
    in_phase(Phase.SUCCEEDED, signalValue="AQID", signalledBy="me"),
    in_phase(Phase.FAILED, errorState={"code": "c", "kind": "USER", "message": "é<"}),
    in_phase(Phase.FAILED, errorState={"code": "c", "recoverable": True}),
    in_phase(Phase.ABORTED, attempts=3),
    in_phase(Phase.SUCCEEDED, outputUri="s3://b/o")
    | {"spec": {**captured(Phase.RUNNING)["spec"], "actionType": "trace"}},
]


@all_codecs
@table("tree", ENDED)
def test_every_reader_reads_the_same(codec: Codec, tree: dict[str, Any]) -> None:
    """The whole object, its summary, and what is told of it; in each form the same mark."""
    update = build_action_update(JSON.decode(JSON.encode_tree(tree)), key=b"k", revision=9)
    mark = TerminalState.of(update).mark(7)
    older = {**tree, "status": captured(Phase.RUNNING)["status"]}
    for state, revision, recorded in (
        (tree, 7, True),
        (tree, 0, True),
        (tree, 8, False),
        (older, 7, True),
    ):
        value = stored(codec, state, mark)
        action = codec.decode(value)
        summary = codec.summarize(value, revision=9, create_revision=revision)
        assert summary == summarize(action, 9, revision)
        told = build_action_update(action, key=b"k", revision=9, create_revision=revision)
        assert (told.recorded, told.phase) == (recorded, update.phase)
        assert (summary.recorded, summary.phase) == (recorded, update.phase)
        assert (told.attempts, summary.attempts) == (update.attempts, update.attempts)
        assert summary.mark == mark_number(mark)
        assert told.partial is (state is older)
        # Who does not know when the key was made takes the mark for its own.
        assert action.is_recorded
        assert action.is_terminal
        assert action.attempts == update.attempts


@each_codec
def test_a_label_without_a_mark_in_each_form(codec: Codec) -> None:
    for event in PUTS:
        tree = JSON.decode_tree(event.value)
        value = stored(codec, tree)
        summary = codec.summarize(value, revision=9, create_revision=7)
        action = codec.decode(value)
        assert summary == summarize(action, 9, 7)
        assert (summary.recorded, summary.stray) == (action.is_terminal, not action.is_terminal)


@each_codec
def test_a_copied_mark_of_an_earlier_incarnation_names_no_outputs(codec: Codec) -> None:
    """Phase, attempt and outputs of what is told go together."""
    update = build_action_update(
        JSON.decode(JSON.encode_tree(in_phase(Phase.SUCCEEDED, attempts=3))), key=b"k", revision=9
    )
    value = stored(codec, in_phase(Phase.RUNNING, attempts=2), TerminalState.of(update).mark(7))
    told = build_action_update(codec.decode(value), key=b"k", revision=12, create_revision=11)
    assert (told.phase, told.attempts, told.recorded) == (Phase.RUNNING, 2, False)
    assert told.output_uri.endswith("/2")
    same = build_action_update(codec.decode(value), key=b"k", revision=12, create_revision=7)
    assert (same.phase, same.attempts) == (Phase.SUCCEEDED, 3)
    assert same.output_uri.endswith("/3")
