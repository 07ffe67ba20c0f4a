"""Flyte's filters and sort keys, for rows of any kind.

The kind of a field determines its values and functions. A row may lack a value, such as the end of
a running run, or a label: nothing equals, contains or exceeds it, so the NOT functions hold.
"""

from __future__ import annotations

import enum
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from flyteidl2.common import list_pb2

from etcd_actions._internal.quoting import quoted
from etcd_actions.errors import InvalidArgument

if TYPE_CHECKING:
    from flyteidl2.common.list_pb2 import Filter, Sort

Row = TypeVar("Row")
Predicate = Callable[[Row], bool]

MOST_FILTERS: Final = 50
MOST_VALUES: Final = 1_000
"""The most values of one filter."""
MOST_SORT_FIELDS: Final = 5

LABELS: Final = "labels."

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_F: Final = list_pb2.Filter


class Kind(enum.Enum):
    """The kind of a field's values."""

    TEXT = "text"
    NUMBER = "an integer"
    TIME = "a time as RFC 3339, such as 2026-01-31T12:00:00Z"
    CHOICE = "a name or a number"


@dataclass(frozen=True)
class Field(Generic[Row]):
    """One field of a row.

    Attributes:
        get: Its value; None if the row has none. Times are microseconds since 1970.
        kind: The kind of its values.
        choices: The numbers of a CHOICE by their names, without the prefix.
        prefix: The common prefix of the names, which a client may omit.
    """

    get: Callable[[Row], Any]
    kind: Kind = Kind.TEXT
    choices: Mapping[str, int] | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Fields(Generic[Row]):
    """The fields of a kind of row.

    Attributes:
        by_name: The fields by the names that clients use.
        label: Returns the value of a label, None without it; None if rows have no labels.
    """

    by_name: Mapping[str, Field[Row]]
    label: Callable[[Row, str], str | None] | None = None

    def filtered_by(self, name: str, where: str) -> Field[Row]:
        """The field of a filter; raises InvalidArgument for an unknown one."""
        if (field := self.by_name.get(name)) is not None:
            return field
        label = self.label
        if label is not None and name.startswith(LABELS) and name != LABELS:
            key = name.removeprefix(LABELS)
            return Field(lambda row: label(row, key))
        more = [] if label is None else [f"{LABELS}KEY"]
        raise InvalidArgument(where, self._unknown(name, more))

    def sorted_by(self, name: str, where: str) -> Field[Row]:
        """The field of a sort key; raises InvalidArgument for an unknown one."""
        if (field := self.by_name.get(name)) is not None:
            return field
        raise InvalidArgument(where, self._unknown(name, []))

    def _unknown(self, name: str, more: Iterable[str]) -> str:
        return f"there is no field {quoted(name)}: there are {', '.join([*self.by_name, *more])}"


def microseconds(time: datetime) -> int:
    """Microseconds since 1970 of a time that has a zone."""
    return (time - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """The time at a number of microseconds since 1970."""
    return _EPOCH + microseconds * _MICROSECOND


def compile_filters(
    filters: Sequence[Filter], fields: Fields[Row], where: str = "request.filters"
) -> Predicate[Row] | None:
    """A predicate that holds for rows that meet all filters; None without filters.

    Args:
        filters: The filters of a request.
        fields: The fields of the rows.
        where: The field of the request that has them, for messages.

    Raises:
        InvalidArgument: A field, a function or a value is unusable.
    """
    if len(filters) > MOST_FILTERS:
        raise InvalidArgument(where, f"there are {len(filters)}, at most {MOST_FILTERS} may be")
    predicates = [
        _compile(each, fields, f"{where}[{number}]") for number, each in enumerate(filters)
    ]
    if len(predicates) < 2:
        return predicates[0] if predicates else None
    return lambda row: all(predicate(row) for predicate in predicates)


def _compile(filter_: Filter, fields: Fields[Row], where: str) -> Predicate[Row]:
    field = fields.filtered_by(filter_.field, f"{where}.field")
    function, get = filter_.function, field.get
    if function in (_F.EXISTS, _F.NOT_EXISTS):
        exists = function == _F.EXISTS
        # A text exists if it is not empty; a label by its key alone.
        if field.kind is Kind.TEXT and not filter_.field.startswith(LABELS):
            return lambda row: bool(get(row)) is exists
        return lambda row: (get(row) is not None) is exists
    if function not in _NEEDED:
        raise InvalidArgument(f"{where}.function", f"there is no function of number {function}")
    values = _values(filter_, field, where)
    if function in (_F.VALUE_IN, _F.VALUE_NOT_IN):
        among = frozenset(values)
        if function == _F.VALUE_IN:
            return lambda row: get(row) in among
        return lambda row: get(row) not in among
    if field.kind is not Kind.TEXT and function in _ON_TEXT:
        name = _F.Function.Name(function)
        raise InvalidArgument(f"{where}.function", f"{name} is for text; {filter_.field} is not")
    return _compare(function, get, values[0])


def _compare(function: int, get: Callable[[Row], Any], value: Any) -> Predicate[Row]:
    """The predicate of a function that takes one value."""
    if function == _F.EQUAL:
        return lambda row: bool(get(row) == value)
    if function == _F.NOT_EQUAL:
        return lambda row: bool(get(row) != value)
    if (compare := _ORDERED.get(function)) is not None:
        return lambda row: (found := get(row)) is not None and compare(found, value)
    if function == _F.CONTAINS:
        return lambda row: (found := get(row)) is not None and value in found
    if function == _F.CONTAINS_CASE_INSENSITIVE:
        value = value.casefold()
        return lambda row: (found := get(row)) is not None and value in found.casefold()
    ends = function == _F.ENDS_WITH
    return lambda row: ((found := get(row)) is not None and found.endswith(value)) is ends


_ORDERED: Final[Mapping[int, Callable[[Any, Any], bool]]] = {
    _F.GREATER_THAN: operator.gt,
    _F.GREATER_THAN_OR_EQUAL: operator.ge,
    _F.LESS_THAN: operator.lt,
    _F.LESS_THAN_OR_EQUAL: operator.le,
}
_ON_TEXT: Final = frozenset(
    (_F.CONTAINS, _F.CONTAINS_CASE_INSENSITIVE, _F.ENDS_WITH, _F.NOT_ENDS_WITH)
)
_ON_SETS: Final = frozenset((_F.VALUE_IN, _F.VALUE_NOT_IN))
_NEEDED: Final = frozenset((_F.EQUAL, _F.NOT_EQUAL, *_ORDERED, *_ON_TEXT, *_ON_SETS))


def _values(filter_: Filter, field: Field[Row], where: str) -> Sequence[Any]:
    given = list(filter_.values)
    where = f"{where}.values"
    if not given:
        raise InvalidArgument(where, f"there are none: give a {filter_.field}")
    if len(given) > MOST_VALUES:
        raise InvalidArgument(where, f"there are {len(given)}, at most {MOST_VALUES} may be")
    if filter_.function not in _ON_SETS and len(given) > 1:
        if field.kind is Kind.CHOICE and all(len(each) == 1 and each.isdigit() for each in given):
            # SDK 2.12 gives a phase's number as a list of its digits: RECOVERED is 1, 0.
            given = ["".join(given)]
        else:
            name = _F.Function.Name(filter_.function)
            raise InvalidArgument(
                where, f"there are {len(given)}, and {name} takes one: use VALUE_IN for several"
            )
    return [_value(each, filter_.field, field, f"{where}[{at}]") for at, each in enumerate(given)]


def _value(text: str, name: str, field: Field[Row], where: str) -> Any:
    kind = field.kind
    if kind is Kind.TEXT:
        return text
    if kind is Kind.TIME:
        try:
            time = datetime.fromisoformat(text)
            return microseconds(time if time.tzinfo is not None else time.replace(tzinfo=UTC))
        except (ValueError, OverflowError):
            pass
    elif text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 19:
        return int(text)
    choices = field.choices
    if kind is Kind.CHOICE and choices is not None:
        known = choices.get(text.upper().removeprefix(field.prefix))
        if known is not None:
            return known
        raise InvalidArgument(
            where,
            f"{quoted(text)} is not a valid {name}: give {', '.join(choices)}, or their numbers",
        )
    raise InvalidArgument(where, f"{quoted(text)} is not {kind.value}, which {name} is")


@dataclass(frozen=True)
class SortKey(Generic[Row]):
    """One field that rows are sorted by.

    Attributes:
        name: The name of the field.
        field: The field.
        descending: Whether the greatest comes first; a missing value is the least.
    """

    name: str
    field: Field[Row]
    descending: bool


def compile_sort(
    sort_by: Sort | None,
    sort_by_fields: Sequence[Sort],
    fields: Fields[Row],
    *,
    default: str,
    where: str = "request",
) -> Sequence[SortKey[Row]]:
    """The sort keys of a request, the most important first.

    Args:
        sort_by: The request's older field; it counts without ``sort_by_fields``.
        sort_by_fields: The request's newer field.
        fields: The fields of the rows.
        default: The sort key, descending, of a request without one.
        where: The field with the request, for messages.

    Raises:
        InvalidArgument: A field is unknown, or there are too many.
    """
    given = [(f"{where}.sort_by_fields[{at}].key", sort) for at, sort in enumerate(sort_by_fields)]
    if len(given) > MOST_SORT_FIELDS:
        raise InvalidArgument(
            f"{where}.sort_by_fields", f"there are {len(given)}, at most {MOST_SORT_FIELDS} may be"
        )
    if not given and sort_by is not None and sort_by.key:
        given = [(f"{where}.sort_by.key", sort_by)]
    if not given:
        return (SortKey(default, fields.by_name[default], descending=True),)
    return tuple(
        SortKey(
            sort.key,
            fields.sorted_by(sort.key, at),
            descending=sort.direction == list_pb2.Sort.DESCENDING,
        )
        for at, sort in given
    )
