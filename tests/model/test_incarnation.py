"""Which object it is: key, create_revision and uid together, as one safe name of a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.executor.attempts.attempt_directory import AttemptDirectory
from etcd_actions.model import Incarnation
from tests.support.table import table

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")
HOSTILE = [
    "",
    ".",
    "..",
    "../../x",
    "/",
    "/etc/passwd",
    "a/b",
    "a\0b",
    "\n",
    "a\nb",
    "-rf",
    "~",
    "é" * 200,
    "\ud800",
    "\u202e",
    "a" * 1_000_000,
    "con.",
    "%2e%2e%2f",
    "$(id)",
]
texts = st.sampled_from(HOSTILE) | st.text(st.characters(exclude_categories=()))
keys = st.binary() | texts.map(lambda text: b"/r/" + text.encode(errors="surrogatepass"))
objects = st.builds(Incarnation, keys, st.integers(0, 2**63 - 1), texts)


@given(objects)
def test_a_name_for_files_is_one_safe_component_whatever_the_object_is(
    object_: Incarnation,
) -> None:
    assert SAFE.fullmatch(object_.path_component)


@given(objects, objects)
def test_only_the_same_object_has_the_same_name(one: Incarnation, other: Incarnation) -> None:
    assert (one == other) is (one.path_component == other.path_component)


@table(
    "other",
    [
        Incarnation(b"/r/ns/b", 7, "u"),
        Incarnation(b"/r/other/a", 7, "u"),
        Incarnation(b"/r/ns/a", 8, "u"),
        Incarnation(b"/r/ns/a", 7, "v"),
        Incarnation(b"/r/ns/a", 7, ""),
        # What is in one part counts as nothing of another.
        Incarnation(b"/r/ns/a7", 0, "u"),
        Incarnation(b"/r/ns/a", 7, "u\0"),
    ],
)
def test_each_of_the_three_tells_objects_apart(other: Incarnation) -> None:
    one = Incarnation(b"/r/ns/a", 7, "u")
    assert one != other
    assert not one.may_be(other)
    assert one.path_component != other.path_component


def test_a_revision_that_is_not_known_may_be_any() -> None:
    """etcd's deletions carry none."""
    one = Incarnation(b"k", 7, "u")
    assert one.may_be(Incarnation(b"k", 0, "u"))
    assert Incarnation(b"k", 0, "u").may_be(one)
    assert not one.may_be(Incarnation(b"k", 0, "v"))


@pytest.mark.parametrize("uid", HOSTILE)
def test_no_uid_leads_out_of_the_state_directory(tmp_path: Path, uid: str) -> None:
    place = AttemptDirectory(
        tmp_path, Incarnation(b"/r/ns/" + uid[:99].encode("utf-8", "replace"), 1, uid), 1
    )
    place.make()
    assert place.path.resolve() == place.path
    assert place.path.parents[1] == tmp_path / "attempts"
    assert [path.name for path in tmp_path.iterdir()] == ["attempts"]
    assert place.note_object()
    assert not place.is_alive
