"""Texts and bytes that people and broken programs give."""

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from hypothesis import strategies as st

from etcd_actions.errors import EtcdActionsError

# What has surprised a parser somewhere: other alphabets' digits, what int() and float() take
# beyond plain numbers, thousands of digits, half a surrogate pair, what drives a terminal.
ODD = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "\x1b[2J",
        "\u202e",
        "\ufeff",
        "\udcff",
        "\n",
        "1_000",
        "\u0663",
        "\u00b3",
        "nan",
        "-inf",
        "1e400",
        "0x10",
        "-0",
        "9" * 5000,
        "1." * 2000,
        "[" * 3000,
        "a/" * 50,
        "/",
        "../..",
        "::",
        "[::1]:1",
        "[::1",
        "http://[::1]:99999",
        "https://user:word@host:1",
        "h\u00f6st:80",
        "a" * 300 + ":80",
        "a..b:80",
        "-",
        "--",
        "=",
        "%00",
        "true",
        "none",
        "1s",
        "1h" * 30,
        "4MiB",
    ]
)
# Half a surrogate pair is what Python makes of a byte that is no UTF-8.
ANY = st.text(st.characters(), max_size=40)
TEXTS = ODD | ANY | st.builds("".join, st.lists(ODD | ANY, max_size=4))


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were right once: cut off, with bits turned, bytes put in or left out."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.sampled_from(["cut", "flip", "insert", "drop", "double"])):
            case "cut":
                del data[at:]
            case "flip":
                data[at : at + 1] = bytes(
                    each ^ 1 << draw(st.integers(0, 7)) for each in data[at : at + 1]
                )
            case "insert":
                data[at:at] = draw(st.binary(max_size=6) | st.sampled_from(BOMBS))
            case "drop":
                del data[at : at + draw(st.integers(1, 8))]
            case _:
                data += data[at:]
    return bytes(data)


BOMBS = [
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xc9\xff\xff\xff\xff\x01",
    b"\x91" * 2000,
    b"[" * 3000,
    b"9" * 5000,
    b"\xef\xbb\xbf",
    b"\xff\xfe",
    b"\0",
]
"""Lengths that nobody has memory for, depths that nobody has a stack for, and marks."""


@st.composite
def pieces(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """The same bytes in pieces of any size."""
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=5)))
    edges = [0, *cuts, len(whole)]
    return [whole[start:end] for start, end in pairwise(edges)]


T = TypeVar("T")


def tried(kind: type[EtcdActionsError], function: Callable[[], T]) -> tuple[T | None, str]:
    """What a function gives, or the message of the error of ours that it raises."""
    try:
        return function(), ""
    except kind as error:
        return None, str(error) or "without a word"
