"""Filters and sort keys, against what they are to mean, said once more and slowly."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
from flyteidl2.common.list_pb2 import Filter, Sort
from hypothesis import given
from hypothesis import strategies as st

from etcd_actions.errors import InvalidArgument
from etcd_actions.runs.filters import (
    MOST_FILTERS,
    MOST_SORT_FIELDS,
    MOST_VALUES,
    Field,
    Fields,
    Kind,
    compile_filters,
    compile_sort,
    microseconds,
    moment,
)
from tests.support.table import table

PHASES = {"QUEUED": 1, "RUNNING": 4, "SUCCEEDED": 5, "RECOVERED": 10}


@dataclass
class Row:
    name: str = ""
    size: int | None = None
    begun: int | None = None
    phase: int = 1
    labels: dict[str, str] = field(default_factory=dict)


FIELDS: Fields[Row] = Fields(
    {
        "name": Field(lambda row: row.name),
        "size": Field(lambda row: row.size, Kind.NUMBER),
        "begun": Field(lambda row: row.begun, Kind.TIME),
        "phase": Field(lambda row: row.phase, Kind.CHOICE, PHASES, "ACTION_PHASE_"),
    },
    lambda row, key: row.labels.get(key),
)


def meets(row: Row, *filters: Filter) -> bool:
    predicate = compile_filters(filters, FIELDS)
    return predicate is None or predicate(row)


def naive(row: Row, wanted: Filter) -> bool:
    """The same by Python's own words, with texts for values."""
    if wanted.field.startswith("labels."):
        value: str | int | None = row.labels.get(wanted.field[7:])
    else:
        value = getattr(row, wanted.field)
    given: list[str | int] = list(wanted.values)
    if wanted.field != "name" and not wanted.field.startswith("labels."):
        given = [
            int((datetime.fromisoformat(each) - moment(0)).total_seconds() * 1_000_000)
            if wanted.field == "begun"
            else int(PHASES.get(each, each))
            for each in wanted.values
        ]
    match Filter.Function.Name(wanted.function):
        case "EQUAL":
            return value == given[0]
        case "NOT_EQUAL":
            return value != given[0]
        case "VALUE_IN":
            return value in given
        case "VALUE_NOT_IN":
            return value not in given
        case "EXISTS":
            return value is not None if wanted.field != "name" else value != ""
        case "NOT_EXISTS":
            return value is None if wanted.field != "name" else value == ""
        case "GREATER_THAN":
            return value is not None and value > given[0]  # type: ignore[operator]
        case "GREATER_THAN_OR_EQUAL":
            return value is not None and value >= given[0]  # type: ignore[operator]
        case "LESS_THAN":
            return value is not None and value < given[0]  # type: ignore[operator]
        case "LESS_THAN_OR_EQUAL":
            return value is not None and value <= given[0]  # type: ignore[operator]
        case "CONTAINS":
            return value is not None and str(given[0]) in str(value)
        case "CONTAINS_CASE_INSENSITIVE":
            return value is not None and str(given[0]).casefold() in str(value).casefold()
        case "ENDS_WITH":
            return value is not None and str(value).endswith(str(given[0]))
        case "NOT_ENDS_WITH":
            return value is None or not str(value).endswith(str(given[0]))
        case other:
            raise AssertionError(other)


_SECONDS = st.integers(0, 3)
_TEXT = st.text("aAß/\0", max_size=3)
ROWS = st.builds(
    Row,
    _TEXT,
    st.none() | _SECONDS,
    st.none() | _SECONDS.map(lambda seconds: seconds * 1_000_000),
    st.sampled_from(sorted(PHASES.values())),
    st.dictionaries(st.sampled_from("kl"), _TEXT),
)
VALUES = {
    "name": _TEXT,
    "labels.k": _TEXT,
    "labels.none": _TEXT,
    "size": _SECONDS.map(str),
    "begun": _SECONDS.map(lambda seconds: moment(seconds * 1_000_000).isoformat()),
    "phase": st.sampled_from([*PHASES, *map(str, PHASES.values())]),
}
TEXT_ONLY = {"CONTAINS", "CONTAINS_CASE_INSENSITIVE", "ENDS_WITH", "NOT_ENDS_WITH"}


@st.composite
def a_filter(draw: st.DrawFn) -> Filter:
    name = draw(st.sampled_from(sorted(VALUES)))
    is_text = name == "name" or name.startswith("labels.")
    names = [each for each, _ in Filter.Function.items() if is_text or each not in TEXT_ONLY]
    function = draw(st.sampled_from(sorted(names)))
    most = 3 if function in ("VALUE_IN", "VALUE_NOT_IN") else 1
    values = draw(st.lists(VALUES[name], min_size=1, max_size=most))
    return Filter(function=Filter.Function.Value(function), field=name, values=values)


@given(ROWS, st.lists(a_filter(), max_size=3))
def test_filters_mean_what_they_say(row: Row, filters: list[Filter]) -> None:
    assert meets(row, *filters) == all(naive(row, each) for each in filters)


@pytest.mark.parametrize("digits", [["10"], ["1", "0"]])
def test_the_digits_of_a_phase_are_its_number(digits: list[str]) -> None:
    # SDK 2.12: values="10" makes two values of it.
    wanted = Filter(function=Filter.EQUAL, field="phase", values=digits)
    assert [meets(Row(phase=phase), wanted) for phase in (1, 10)] == [False, True]


@pytest.mark.parametrize("text", ["RUNNING", "running", "ACTION_PHASE_RUNNING", "4"])
def test_a_phase_is_named_in_several_ways(text: str) -> None:
    assert meets(Row(phase=4), Filter(function=Filter.EQUAL, field="phase", values=[text]))


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05.000000999Z", "2026-01-02T05:04:05+02:00",
     "2026-01-02T03:04:05"],
)  # fmt: skip
def test_times_are_read_with_any_zone_and_to_the_microsecond(text: str) -> None:
    row = Row(begun=microseconds(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))
    assert meets(row, Filter(function=Filter.EQUAL, field="begun", values=[text]))


def refused(*filters: Filter) -> str:
    with pytest.raises(InvalidArgument) as caught:
        compile_filters(filters, FIELDS)
    return str(caught.value)


@table(
    ("wanted", "said"),
    [
        (Filter(field="nme", values=["x"]), r"\[0\].field: .*'nme'.* name, .*labels.KEY"),
        (Filter(field="labels.", values=["x"]), r"filters\[0\].field: there is no field"),
        (Filter(field="size", values=["many"]), r"filters\[0\].values\[0\]: 'many' is not an int"),
        (Filter(field="size", values=["9" * 20]), r"values\[0\]: .* is not an integer"),
        (Filter(field="begun", values=["today"]), r"values\[0\]: 'today' is not a time as RFC"),
        (Filter(field="phase", values=["ODD"]), r"values\[0\]: 'ODD' is not a valid phase: "),
        (Filter(field="name", values=[]), r"filters\[0\].values: there are none"),
        (Filter(field="name", values=["a", "b"]), r"values: there are 2, and EQUAL takes one"),
        (Filter(field="size", values=["1"], function=Filter.CONTAINS), r"function: CONTAINS is"),
        (Filter(field="name", values=["1"], function=99), r"function: .* of number 99"),
        (
            Filter(field="name", values=["a"] * (MOST_VALUES + 1), function=Filter.VALUE_IN),
            r"values: there are 1001, at most 1000",
        ),
    ],
)  # fmt: skip
def test_an_unusable_filter_is_named(wanted: Filter, said: str) -> None:
    assert re.search(said, refused(wanted))


def test_too_many_filters_are_refused() -> None:
    said = refused(*[Filter(field="name", values=["a"])] * (MOST_FILTERS + 1))
    assert said == "request.filters: there are 51, at most 50 may be"


def test_sort_keys_are_taken_from_either_field_of_a_request() -> None:
    def keys(one: Sort | None, *several: Sort) -> list[tuple[str, bool]]:
        sort = compile_sort(one, several, FIELDS, default="begun")
        return [(key.name, key.descending) for key in sort]

    by_name, by_size = Sort(key="name"), Sort(key="size", direction=Sort.ASCENDING)
    assert keys(None) == [("begun", True)]
    assert keys(Sort()) == [("begun", True)]
    assert keys(by_name) == [("name", True)]
    assert keys(by_name, by_size, by_name) == [("size", False), ("name", True)]
    with pytest.raises(InvalidArgument, match=r"request.sort_by.key: there is no field 'labels.k'"):
        keys(Sort(key="labels.k"))
    with pytest.raises(InvalidArgument, match=r"sort_by_fields: there are 6, at most 5"):
        keys(None, *[by_name] * (MOST_SORT_FIELDS + 1))
