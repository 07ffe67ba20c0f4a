"""Keys of deployed tasks, whose names are anything."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.errors import DecodeError, InvalidArgument
from etcd_actions.etcd.api import KeyRange
from etcd_actions.registry.task_record import MOST_OF_A_NAME, TaskId, parse_task_key, task_key

PREFIX = b"/etcd-actions/x/tasks/"
_PART = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.sampled_from(
    ["/", "..", "a/b", "\0", "%2F", "~", "ä", "x" * 10_000, "\U0010ffff"]
)
_TASKS = st.builds(TaskId, _PART, _PART, _PART, _PART)


@settings(max_examples=40)
@given(_TASKS, _TASKS)
def test_a_key_is_of_one_task_and_can_be_read_back(one: TaskId, other: TaskId) -> None:
    key = task_key(PREFIX, one)
    assert parse_task_key(PREFIX, key) == one
    assert key in KeyRange.of_prefix(PREFIX)
    assert key.count(b"/") == PREFIX.count(b"/") + 3
    assert (task_key(PREFIX, other) == key) is (other == one)


@pytest.mark.parametrize("rest", [b"", b"a/b/c", b"a/b/c/d/e", b"a/b/c/%ff", b"a/b/c/%61"])
def test_what_is_no_key_of_a_task_is_refused(rest: bytes) -> None:
    with pytest.raises(DecodeError, match="not the key of a task"):
        parse_task_key(PREFIX, PREFIX + rest)


@pytest.mark.parametrize("part", ["project", "domain", "name", "version"])
def test_missing_and_huge_parts_are_named(part: str) -> None:
    good = {"project": "p", "domain": "d", "name": "n", "version": "v"}
    TaskId(**good).check()
    with pytest.raises(InvalidArgument, match=rf"^task_id.{part}: it is missing"):
        TaskId(**good | {part: ""}).check()
    TaskId(**good | {part: "x" * MOST_OF_A_NAME}).check()
    with pytest.raises(InvalidArgument, match=rf"^task_id.{part}: it has 16386 bytes"):
        TaskId(**good | {part: "ä" * (MOST_OF_A_NAME // 2 + 1)}).check()
