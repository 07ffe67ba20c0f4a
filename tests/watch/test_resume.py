"""The resume rules, as properties over every way in which etcd may cut a history up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.etcd.api import Event, KeyRange
from etcd_actions.watch.resume import Resume, repartition

_KEYS = [bytes((letter,)) for letter in b"abcdefgh"]
_WHOLE = KeyRange(b"a", b"i")


def event(key: bytes, revision: int) -> Event:
    return Event(key, b"", revision, revision, 1)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """Revisions from 2 up, with gaps; each changes one or more keys."""
    revision = 1
    events = []
    for _ in range(draw(st.integers(0, 12))):
        revision += draw(st.integers(1, 3))
        keys = draw(st.lists(st.sampled_from(_KEYS), min_size=1, max_size=4, unique=True))
        events += [event(key, revision) for key in sorted(keys)]
    return events


def responses(
    draw: Callable[[st.SearchStrategy[int]], int], events: Sequence[Event]
) -> list[tuple[Sequence[Event], bool]]:
    """Cut events into responses: whole revisions each, and some of these into fragments."""
    result: list[tuple[Sequence[Event], bool]] = []
    rest = list(events)
    while rest:
        size = draw(st.integers(1, len(rest)))
        while size < len(rest) and rest[size].mod_revision == rest[size - 1].mod_revision:
            size += 1
        whole, rest = rest[:size], rest[size:]
        while whole:
            part = draw(st.integers(1, len(whole)))
            result.append((whole[:part], part < len(whole)))
            whole = whole[part:]
    return result


@given(st.data(), histories())
def test_nothing_is_lost_or_doubled_over_any_cuts(
    data: st.DataObject, history: list[Event]
) -> None:
    """Streams that break anywhere, between fragments too, give the history, once, in order."""
    resume = Resume(_WHOLE, 0)
    given_out: list[Event] = []
    for _ in range(data.draw(st.integers(0, 4))):
        resume.stream_lost()
        missing = [e for e in history if e.mod_revision >= resume.start_revision]
        sent = responses(data.draw, missing)
        for events, fragment in sent[: data.draw(st.integers(0, len(sent)))]:
            given_out += resume.accept(events, fragment=fragment)
            # Done means done: all up to it was given out, and nothing of what is above it.
            assert given_out == [e for e in history if e.mod_revision <= resume.done]
    resume.stream_lost()
    for events, fragment in responses(
        data.draw, [e for e in history if e.mod_revision >= resume.start_revision]
    ):
        given_out += resume.accept(events, fragment=fragment)
    assert given_out == history


@given(histories(), st.integers(0, 40))
def test_what_is_done_is_dropped_when_it_comes_again(history: list[Event], done: int) -> None:
    """A watch is opened at ``done``, and some versions of etcd go back in time."""
    resume = Resume(_WHOLE, done)
    given_out = resume.accept(history, fragment=False)
    assert list(given_out) == [e for e in history if e.mod_revision > done]


def test_start_is_never_zero() -> None:
    """etcd takes a start revision of 0 for 'from now on', which is a gap."""
    assert Resume(_WHOLE, 0).start_revision == 1


def test_only_the_last_revision_of_a_fragment_is_held_back() -> None:
    """A fragment may mix the end of a revision with the beginning of the next."""
    resume = Resume(_WHOLE, 0)
    first = [event(b"a", 5), event(b"b", 5), event(b"a", 6)]
    assert [e.mod_revision for e in resume.accept(first, fragment=True)] == [5, 5]
    assert resume.done == 5
    rest = resume.accept([event(b"b", 6), event(b"c", 6)], fragment=False)
    assert [e.key for e in rest] == [b"a", b"b", b"c"]
    assert resume.done == 6


def test_progress_moves_the_resume_point_but_not_inside_a_fragment() -> None:
    """Held back events would be skipped by a resume point above them."""
    resume = Resume(_WHOLE, 3)
    resume.progress(9)
    assert resume.done == 9
    resume.accept([event(b"a", 10)], fragment=True)
    resume.progress(20)
    assert resume.done == 9
    resume.stream_lost()
    resume.progress(4)
    assert resume.done == 9


def test_restart_forgets_everything_before() -> None:
    """After a list nothing that was held back may come out again."""
    resume = Resume(_WHOLE, 3)
    resume.accept([event(b"a", 10)], fragment=True)
    resume.restart(30)
    assert resume.accept([event(b"a", 10), event(b"a", 31)], fragment=False) == [event(b"a", 31)]


def partitions() -> st.SearchStrategy[list[KeyRange]]:
    def build(cuts: set[bytes]) -> list[KeyRange]:
        starts = [_WHOLE.start, *sorted(cuts)]
        return [KeyRange(a, b) for a, b in zip(starts, [*starts[1:], _WHOLE.end], strict=True)]

    return st.sets(st.sampled_from(_KEYS[1:]), max_size=4).map(build)


@pytest.mark.slow
@given(st.data(), histories(), st.lists(partitions(), min_size=2, max_size=5))
def test_boundaries_may_move_at_any_time(
    data: st.DataObject, history: list[Event], layouts: list[list[KeyRange]]
) -> None:
    """Ranges that are done at different revisions are recut: per key nothing is lost or doubled."""
    given_out: list[Event] = []
    ranges = [Resume(keys, 0) for keys in layouts[0]]
    for layout in [*layouts[1:], layouts[0]]:
        for resume in ranges:
            resume.stream_lost()
            mine = [
                e
                for e in history
                if e.key in resume.keys and e.mod_revision >= resume.start_revision
            ]
            sent = responses(data.draw, mine)
            for events, fragment in sent[: data.draw(st.integers(0, len(sent)))]:
                given_out += resume.accept(events, fragment=fragment)
            assert resume.highest >= resume.done
        ranges = repartition(ranges, layout)
        assert [resume.keys for resume in ranges] == layout
    for resume in ranges:
        mine = [
            e for e in history if e.key in resume.keys and e.mod_revision >= resume.start_revision
        ]
        given_out += resume.accept(mine, fragment=False)
    for key in _KEYS:
        assert [e for e in given_out if e.key == key] == [e for e in history if e.key == key]
