"""Pages of a list whose rows come and go.

A page begins behind a position: the values that the last row of the page before was sorted by, and
the row's identity. So a row that is there all the while, with the same values, is on exactly one
page, whatever is added or removed meanwhile. A token is such a position with a digest over it and
over what was asked: one of another list, or a damaged one, is refused.
"""

from __future__ import annotations

import heapq
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain
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
"""Of a page: a greater limit gives pages of so many."""

_LONGEST_TOKEN: Final = 128 * 1024
_DIGEST: Final = 12

Value: TypeAlias = int | str | None

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(tuple[Value, ...]).decode


class Page(NamedTuple, Generic[Row]):
    """Some rows, and the token of the page behind them: empty behind the last."""

    rows: Sequence[Row]
    token: str


@dataclass(frozen=True)
class Query(Generic[Row]):
    """What a list request asks for; made by :func:`parse`.

    Attributes:
        matches: Whether a row meets the filters; None where all do.
        sort: What rows are sorted by.
        identity: Tells rows apart that are sorted alike.
        limit: Number of rows of a page.
        position: The values of the sort keys, and the identity, behind which the page begins; None
            for the first page.
        about: What was asked, as far as a token is bound to it.
    """

    matches: Predicate[Row] | None
    sort: Sequence[SortKey[Row]]
    identity: Callable[[Row], str]
    limit: int
    position: tuple[Value, ...] | None
    about: bytes

    def descending_by(self, name: str) -> bool | None:
        """Whether rows are sorted by this field descending; None where another one counts, too."""
        return self.sort[0].descending if [key.name for key in self.sort] == [name] else None

    def select(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Those that meet the filters."""
        matches = self.matches
        return rows if matches is None else [row for row in rows if matches(row)]

    def page(self, rows: Sequence[Row]) -> Page[Row]:
        """The page of rows that are all that come, in order, or more than its limit."""
        if len(rows) <= self.limit:
            return Page(rows, "")
        rows = rows[: self.limit]
        return Page(rows, self._token(rows[-1]))

    def rank(self, row: Row) -> tuple[Any, ...]:
        """What is less for rows that come earlier."""
        return self._rank((*(key.field.get(row) for key in self.sort), self.identity(row)))

    def begins_behind(self) -> tuple[Any, ...] | None:
        """The rank of the position."""
        return None if self.position is None else self._rank(self.position)

    def _rank(self, position: Sequence[Value]) -> tuple[Any, ...]:
        ranked: list[Any] = [
            _ranked(value, key.descending) for key, value in zip(self.sort, position, strict=False)
        ]
        return (*ranked, _ranked(position[-1], self.sort[0].descending))

    def _token(self, row: Row) -> str:
        position = _encode((*(key.field.get(row) for key in self.sort), self.identity(row)))
        return urlsafe_b64encode(_digest(self.about, position) + position).decode()


def parse(
    request: ListRequest,
    fields: Fields[Row],
    *,
    identity: Callable[[Row], str],
    default: str,
    scope: bytes,
    where: str = "request",
) -> Query[Row]:
    """What a request asks for.

    Args:
        request: See Flyte's message.
        fields: Of the rows.
        identity: Tells rows apart that are sorted alike; it never changes.
        default: The field that counts, descending, where the request has no sort key.
        scope: What is listed: a token is good for one scope.
        where: Where the request is, for messages.

    Raises:
        InvalidArgument: A part of it is unusable; it says which, and why.
    """
    if request.raw_filters:
        raise InvalidArgument(f"{where}.raw_filters", "they are not served: use filters")
    sort_by = request.sort_by if request.HasField("sort_by") else None
    sort = compile_sort(sort_by, request.sort_by_fields, fields, default=default, where=where)
    asked = [each.SerializeToString(deterministic=True) for each in request.filters]
    sorted_by = [f"{key.name} {key.descending}".encode() for key in sort]
    about = _encode([scope, asked, sorted_by])
    return Query(
        compile_filters(request.filters, fields, f"{where}.filters"),
        sort,
        identity,
        min(request.limit or USUAL_LIMIT, MOST_ROWS),
        _position(request.token, about, sort, f"{where}.token"),
        about,
    )


async def take_in_order(query: Query[Row], rows: Iterable[Sequence[Row]]) -> Page[Row]:
    """The page of rows that come in the order that is asked for, from its position on.

    Others have their turn between two portions of rows; a portion is asked for when it is needed.
    """
    found: list[Row] = []
    for portion in rows:
        found += query.select(portion)
        await trio.lowlevel.checkpoint()
        if len(found) > query.limit:
            break
    return query.page(found)


async def take_sorted(query: Query[Row], rows: Iterable[Sequence[Row]]) -> Page[Row]:
    """The page of rows that come in any order.

    Others have their turn between two portions of rows.
    """
    behind = query.begins_behind()
    found: list[tuple[tuple[Any, ...], Row]] = []
    for portion in rows:
        ranked = ((query.rank(row), row) for row in query.select(portion))
        later = ranked if behind is None else (each for each in ranked if each[0] > behind)
        found = heapq.nsmallest(query.limit + 1, chain(found, later), key=_rank_of)
        await trio.lowlevel.checkpoint()
    return query.page([row for _, row in found])


def _rank_of(ranked: tuple[tuple[Any, ...], object]) -> tuple[Any, ...]:
    return ranked[0]


class _Reversed:
    """A text that is less where it would be greater."""

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


def _digest(about: bytes, position: bytes) -> bytes:
    return blake2b(about + b"\0" + position, digest_size=_DIGEST).digest()


def _position(
    token: str, about: bytes, sort: Sequence[SortKey[Row]], where: str
) -> tuple[Value, ...] | None:
    if not token:
        return None
    if len(token) <= _LONGEST_TOKEN and token.isascii():
        try:
            data = urlsafe_b64decode(token)
            if data[:_DIGEST] == _digest(about, data[_DIGEST:]):
                position = _decode(data[_DIGEST:])
                kinds = [str if key.field.kind is Kind.TEXT else int for key in sort]
                if (
                    len(position) == len(kinds) + 1
                    and isinstance(position[-1], str)
                    and all(
                        value is None or isinstance(value, kind)
                        for value, kind in zip(position, kinds, strict=False)
                    )
                ):
                    return position
        except ValueError:
            pass
    raise InvalidArgument(
        where, "it is not of this list: leave it out, and begin with the first page"
    )
