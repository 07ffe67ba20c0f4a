"""Pages of a list whose rows change between two pages.

A page begins after a cursor: the sort values of the last row of the page before, and that row's
identity. So a row that exists all the time, with the same values, is on exactly one page. A token
is a cursor with a digest over it and the request: a token of another list is refused.
"""

from __future__ import annotations

import heapq
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeAlias

import msgspec
import trio

from etcd_actions.errors import InvalidArgument
from etcd_actions.runs.filters import (
    Fields,
    Kind,
    Predicate,
    Row,
    SortKey,
    compile_filters,
    compile_sort,
)

if TYPE_CHECKING:
    from flyteidl2.common.list_pb2 import ListRequest

USUAL_LIMIT: Final = 50
MOST_ROWS: Final = 1_000
"""The most rows of a page; a greater limit counts as this one."""

_LONGEST_TOKEN: Final = 128 * 1024
_DIGEST: Final = 12

Value: TypeAlias = int | str | None

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(tuple[Value, ...]).decode


class Page(NamedTuple, Generic[Row]):
    """Some rows, and the token of the next page; empty after the last."""

    rows: Sequence[Row]
    token: str


@dataclass(frozen=True)
class Query(Generic[Row]):
    """A parsed list request; created by :func:`parse`.

    Attributes:
        matches: Whether a row meets the filters; None if there are none.
        sort: The sort keys.
        identity: Distinguishes rows with equal sort values.
        limit: Number of rows of a page.
        cursor: The sort values and the identity after which the page begins; None for the first.
        about: The parts of the request to which a token is bound.
    """

    matches: Predicate[Row] | None
    sort: Sequence[SortKey[Row]]
    identity: Callable[[Row], str]
    limit: int
    cursor: tuple[Value, ...] | None
    about: bytes

    def descending_by(self, name: str) -> bool | None:
        """Whether rows are sorted by this field alone, descending; None if by other fields."""
        return self.sort[0].descending if [key.name for key in self.sort] == [name] else None

    def select(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows that meet the filters."""
        matches = self.matches
        return rows if matches is None else [row for row in rows if matches(row)]

    def page(self, rows: Sequence[Row]) -> Page[Row]:
        """The page of sorted rows: all that remain, or more than the limit."""
        if len(rows) <= self.limit:
            return Page(rows, "")
        rows = rows[: self.limit]
        return Page(rows, self._token(rows[-1]))

    def rank(self, row: Row) -> tuple[Any, ...]:
        """The sort key of a row."""
        return self._rank((*(key.field.get(row) for key in self.sort), self.identity(row)))

    def cursor_rank(self) -> tuple[Any, ...] | None:
        """The sort key of the cursor."""
        return None if self.cursor is None else self._rank(self.cursor)

    def _rank(self, cursor: Sequence[Value]) -> tuple[Any, ...]:
        ranked: list[Any] = [
            _ranked(value, key.descending) for key, value in zip(self.sort, cursor, strict=False)
        ]
        return (*ranked, _ranked(cursor[-1], self.sort[0].descending))

    def _token(self, row: Row) -> str:
        cursor = _encode((*(key.field.get(row) for key in self.sort), self.identity(row)))
        return urlsafe_b64encode(_digest(self.about, cursor) + cursor).decode()


def parse(
    request: ListRequest,
    fields: Fields[Row],
    *,
    identity: Callable[[Row], str],
    default: str,
    scope: bytes,
    where: str = "request",
) -> Query[Row]:
    """Parse a list request.

    Args:
        request: Flyte's message.
        fields: The fields of the rows.
        identity: Distinguishes rows with equal sort values; it never changes.
        default: The sort key, descending, of a request without one.
        scope: The list: a token is valid for one.
        where: The field with the request, for messages.

    Raises:
        InvalidArgument: A field of the request is unusable.
    """
    if request.raw_filters:
        raise InvalidArgument(f"{where}.raw_filters", "they are not served: use filters")
    sort_by = request.sort_by if request.HasField("sort_by") else None
    sort = compile_sort(sort_by, request.sort_by_fields, fields, default=default, where=where)
    filters = [each.SerializeToString(deterministic=True) for each in request.filters]
    sorted_by = [f"{key.name} {key.descending}".encode() for key in sort]
    about = _encode([scope, filters, sorted_by])
    return Query(
        compile_filters(request.filters, fields, f"{where}.filters"),
        sort,
        identity,
        min(request.limit or USUAL_LIMIT, MOST_ROWS),
        _cursor(request.token, about, sort, f"{where}.token"),
        about,
    )


async def take_in_order(query: Query[Row], rows: Iterable[Sequence[Row]]) -> Page[Row]:
    """The page of rows that are in the requested order, and begin after the cursor.

    Reads no more portions than the page needs; other tasks run between two of them.
    """
    found: list[Row] = []
    for portion in rows:
        found += query.select(portion)
        await trio.lowlevel.checkpoint()
        if len(found) > query.limit:
            break
    return query.page(found)


async def take_sorted(query: Query[Row], rows: Iterable[Sequence[Row]]) -> Page[Row]:
    """The page of rows in any order; other tasks run between two portions."""
    after = query.cursor_rank()
    found: list[tuple[tuple[Any, ...], Row]] = []
    for portion in rows:
        ranked = ((query.rank(row), row) for row in query.select(portion))
        later = ranked if after is None else (each for each in ranked if each[0] > after)
        found = heapq.nsmallest(query.limit + 1, chain(found, later), key=itemgetter(0))
        await trio.lowlevel.checkpoint()
    return query.page([row for _, row in found])


class _Reversed:
    """A text in descending order."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __lt__(self, other: _Reversed) -> bool:
        return self._text > other._text


def _ranked(value: Value, descending: bool) -> tuple[Any, ...]:
    if value is None:
        return (descending,)
    if not descending:
        return (True, value)
    return (False, -value if isinstance(value, int) else _Reversed(value))


def _digest(about: bytes, cursor: bytes) -> bytes:
    return blake2b(about + b"\0" + cursor, digest_size=_DIGEST).digest()


def _cursor(
    token: str, about: bytes, sort: Sequence[SortKey[Row]], where: str
) -> tuple[Value, ...] | None:
    if not token:
        return None
    try:
        if len(token) <= _LONGEST_TOKEN:
            data = urlsafe_b64decode(token)
            if data[:_DIGEST] == _digest(about, data[_DIGEST:]):
                return _decoded(data[_DIGEST:], sort)
    except ValueError:
        pass
    raise InvalidArgument(where, "it is not of this list: omit it, and start with the first page")


def _decoded(data: bytes, sort: Sequence[SortKey[Row]]) -> tuple[Value, ...]:
    """Decode a cursor; raises ValueError."""
    cursor = _decode(data)
    kinds = [str if key.field.kind is Kind.TEXT else int for key in sort]
    if len(cursor) != len(kinds) + 1 or not isinstance(cursor[-1], str):
        raise ValueError("another number of values")
    if not all(v is None or isinstance(v, kind) for v, kind in zip(cursor, kinds, strict=False)):
        raise ValueError("values of other kinds")
    return cursor
