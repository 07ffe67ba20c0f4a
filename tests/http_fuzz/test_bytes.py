"""Whatever bytes a client sends, the next client is served: HTTP/1.1 and HTTP/2, byte by byte."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.http_fuzz.served import Served, fuzz
from tests.http_fuzz.transcripts import CLIENTS, Transcript
from tests.support.hostile_http1 import ILLEGAL
from tests.support.hostile_wire import PREFACE

pytestmark = [pytest.mark.faults, pytest.mark.slow]

kinds = st.sampled_from(("service", "monitoring"))
ends = st.sampled_from(("fin", "fin", "close", "reset", "listen"))
_STARTS: Final = (
    b"",
    b"GET ",
    b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
    b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n",
    PREFACE,
    PREFACE + b"\0\0\0\4\0\0\0\0\0",
    b"\x16\x03\x01",
)

Mutation = Callable[[bytes, Sequence[Transcript]], bytes]


@st.composite
def mutations(draw: st.DrawFn) -> Mutation:
    """One change of some bytes; places are fractions, since lengths are not known here."""
    place = st.floats(0, 1, exclude_max=True)
    kind = draw(st.sampled_from(("cut", "flip", "set", "insert", "delete", "repeat", "splice")))
    at, to = draw(place), draw(place)
    value = draw(st.binary(min_size=1, max_size=12))
    other = draw(st.integers(0, len(CLIENTS) - 1))
    count = draw(st.integers(1, 40))

    def mutate(data: bytes, transcripts: Sequence[Transcript]) -> bytes:
        start, end = sorted((int(at * len(data)), int(to * len(data))))
        match kind:
            case "cut":
                return data[:start]
            case "flip":
                changed = bytearray(data)
                for place in range(start, min(start + len(value), len(data))):
                    changed[place] ^= value[place - start]
                return bytes(changed)
            case "set":
                return data[:start] + value + data[start + len(value) :]
            case "insert":
                return data[:start] + value + data[start:]
            case "delete":
                return data[:start] + data[end:]
            case "repeat":
                return data[:start] + data[start : start + 500] * count + data[start:]
            case _:
                return data[:start] + transcripts[other].data[int(to * 1000) :]

    return mutate


def _in_pieces(data: bytes, places: Sequence[float]) -> list[bytes]:
    cuts = sorted({int(place * len(data)) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(cuts)]


def test_any_bytes_leave_the_server_to_others(served: Served) -> None:
    @fuzz(500)
    @given(kinds, st.sampled_from(_STARTS), st.lists(st.binary(max_size=400), max_size=5), ends)
    def throw(kind: str, start: bytes, chunks: list[bytes], end: str) -> None:
        served.throw(kind, [start, *chunks], end)

    throw()


def test_mutated_transcripts_leave_the_server_to_others(
    served: Served, transcripts: list[Transcript]
) -> None:
    @fuzz(1200)
    @given(
        st.integers(0, len(CLIENTS) - 1),
        st.lists(mutations(), min_size=1, max_size=4),
        st.lists(st.floats(0, 1), max_size=3),
        ends,
    )
    def throw(number: int, changes: list[Mutation], places: list[float], end: str) -> None:
        kind, data = transcripts[number]
        for change in changes:
            data = change(data, transcripts)
        served.throw(kind, _in_pieces(data[:200_000], places), end)

    throw()


def test_mutated_requests_of_http1_leave_the_server_to_others(served: Served) -> None:
    shapes = sorted(ILLEGAL)

    @fuzz(300)
    @given(
        kinds,
        st.lists(st.sampled_from(shapes), min_size=1, max_size=3),
        st.lists(mutations(), max_size=2),
        ends,
    )
    def throw(kind: str, names: list[str], changes: list[Mutation], end: str) -> None:
        data = b"".join(ILLEGAL[name] for name in names)
        for change in changes:
            data = change(data, [Transcript(kind, data)] * len(CLIENTS))
        served.throw(kind, [data[:200_000]], end)

    throw()
