"""Pages of runs that come, change and go while a client reads them."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode

import msgspec
import pytest
import trio
from flyteidl2.common.list_pb2 import Filter, ListRequest, Sort
from hypothesis import given, settings
from hypothesis import strategies as st

from etcd_actions.errors import InvalidArgument
from etcd_actions.runs import list_pages
from etcd_actions.runs.list_pages import MOST_ROWS, Page, Query, parse, take_in_order, take_sorted
from etcd_actions.runs.run_entry import RunEntry
from etcd_actions.runs.run_fields import CREATED, RUN_FIELDS
from etcd_actions.runs.run_index import OfProject
from etcd_actions.runs.run_record import RunRecord
from tests.support.everyday import examples
from tests.support.runs import FedIndex, key_of, record, status

SHELF = OfProject("p", "d")


def asked(request: ListRequest, scope: bytes = b"p") -> Query[RunEntry]:
    return parse(request, RUN_FIELDS, identity=lambda run: run.name, default=CREATED, scope=scope)


async def page_of(index: FedIndex, query: Query[RunEntry]) -> Page[RunEntry]:
    descending = query.descending_by(CREATED)
    if descending is None:
        return await take_sorted(query, index.portions(SHELF, descending=True, first=3))
    after = None
    if query.cursor is not None:
        created, name = query.cursor
        assert isinstance(created, int)
        assert isinstance(name, str)
        after = created, key_of(index.keys, record(name))
    portions = index.portions(SHELF, descending=descending, after=after, first=2)
    return await take_in_order(query, portions)


_NAMES = [f"r{number}" for number in range(12)]
# Few times: many runs are created at the same one.
_RUNS = st.builds(
    lambda name, at, phase, task: record(name, at=at, task=task, status=status(phase)),
    st.sampled_from(_NAMES),
    st.integers(0, 3),
    st.sampled_from([4, 5]),
    st.sampled_from(["e.a", "e.b"]),
)
_DIRECTIONS = st.sampled_from([Sort.ASCENDING, Sort.DESCENDING])
_SORTS = st.builds(Sort, key=st.just(CREATED), direction=_DIRECTIONS).map(
    lambda sort: [sort]
) | st.lists(
    st.builds(
        Sort,
        key=st.sampled_from([CREATED, "task_name", "phase", "ended_at", "name"]),
        direction=_DIRECTIONS,
    ),
    max_size=3,
)


@settings(max_examples=examples(40))
@given(
    st.lists(_RUNS, unique_by=lambda run: run.name),
    st.lists(st.lists(_RUNS | st.sampled_from(_NAMES), max_size=3), max_size=8),
    _SORTS,
    st.integers(1, 4),
)
def test_what_is_there_all_the_while_is_on_one_page(
    first: list[RunRecord],
    changes: list[list[RunRecord | str]],
    sorts: list[Sort],
    limit: int,
) -> None:
    """Between two pages runs are added, changed and deleted."""
    index = FedIndex()
    stored = {run.name: run for run in first}
    for run in first:
        index.put(run, listed=True)
    untouched = set(stored)
    seen: list[RunEntry] = []
    request = ListRequest(limit=limit, sort_by_fields=sorts)

    async def read() -> None:
        pending = list(changes)
        while True:
            query = asked(request)
            page = await page_of(index, query)
            assert len(page.rows) <= limit
            ranks = [query.rank(row) for row in page.rows]
            assert ranks == sorted(ranks)
            seen.extend(page.rows)
            if not page.token:
                return
            request.token = page.token
            for change in pending.pop(0) if pending else []:
                name = change if isinstance(change, str) else change.name
                before = stored.pop(name, None)
                untouched.discard(name)
                if isinstance(change, str):
                    if before is not None:
                        index.delete(before)
                    continue
                # When a run was created does not change.
                created = change.created if before is None else before.created
                stored[name] = msgspec.structs.replace(change, created=created)
                index.put(stored[name])

    trio.run(read)
    names = [entry.name for entry in seen]
    assert untouched - set(names) == set()
    assert sorted(each for each in names if each in untouched) == sorted(untouched)
    if not any(changes):
        query = asked(replace_token(request, ""))
        assert [query.rank(row) for row in seen] == sorted(map(query.rank, seen))


def replace_token(request: ListRequest, token: str) -> ListRequest:
    made = ListRequest()
    made.CopyFrom(request)
    made.token = token
    return made


def token_of(request: ListRequest, scope: bytes = b"p") -> str:
    index = FedIndex()
    for number in range(3):
        index.put(record(f"r{number}", at=number))
    request.limit = 1

    async def read() -> str:
        return (await page_of(index, asked(request, scope))).token

    return trio.run(read)


def refuses(request: ListRequest, token: str, scope: bytes = b"p") -> None:
    with pytest.raises(InvalidArgument, match=r"^request.token: it is not of this list"):
        asked(replace_token(request, token), scope)


def test_a_token_is_good_for_its_list_alone() -> None:
    token = token_of(ListRequest())
    assert asked(ListRequest(token=token)).cursor is not None
    refuses(ListRequest(), token, b"q")
    refuses(ListRequest(sort_by=Sort(key="name")), token)
    refuses(ListRequest(sort_by=Sort(key=CREATED, direction=Sort.ASCENDING)), token)
    refuses(ListRequest(filters=[Filter(field="name", values=["r1"])]), token)


@pytest.mark.parametrize("token", ["50", "é", "A", "====", "A" * 200_000, "AAAA" * 8])
def test_what_is_no_token_is_refused(token: str) -> None:
    refuses(ListRequest(), token)


@settings(max_examples=examples(20))
@given(st.integers(0, 30), st.integers(1, 255))
def test_a_damaged_token_is_refused(at: int, change: int) -> None:
    data = bytearray(urlsafe_b64decode(token_of(ListRequest())))
    data[at % len(data)] ^= change
    refuses(ListRequest(), urlsafe_b64encode(bytes(data)).decode())


def test_a_forged_position_of_other_kinds_is_refused() -> None:
    query = asked(ListRequest())
    for position in ((None, 1), ("x", "r1"), (1,), (1, "r1", "r2")):
        encoded = msgspec.json.encode(position)
        digest = list_pages._digest(query.about, encoded)
        refuses(ListRequest(), urlsafe_b64encode(digest + encoded).decode())


def test_limits_are_bounded() -> None:
    assert asked(ListRequest()).limit == 50
    assert asked(ListRequest(limit=2**32 - 1)).limit == MOST_ROWS


def test_raw_filters_are_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"request.raw_filters: .* use filters"):
        asked(ListRequest(raw_filters=["x"]))
