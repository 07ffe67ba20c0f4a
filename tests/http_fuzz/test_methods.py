"""Whatever a request of any method holds, its answer is an error that the caller understands."""

from __future__ import annotations

import pytest
from connectrpc.method import StreamType
from hypothesis import given
from hypothesis import strategies as st

from tests.http_fuzz.requests import drawn
from tests.http_fuzz.served import Served, fuzz
from tests.support.hostile_bodies import absurd_json, envelope, post
from tests.support.hostile_calls import ask, is_good_answer

pytestmark = [pytest.mark.faults, pytest.mark.slow]

# A stream ends with this; it is no answer's time.
_STREAM_MS = "60"


def test_any_request_of_any_method_is_answered_well(served: Served) -> None:
    methods = sorted(served.server.methods)

    @fuzz(1500)
    @given(
        st.sampled_from(methods),
        st.integers(0, 2**32),
        st.sampled_from((0.0, 0.05, 0.15, 0.4)),
    )
    def throw(path: str, seed: int, hostile: float) -> None:
        served.start()
        method = served.server.methods[path]
        body = drawn(method.input, seed, hostile).SerializeToString()
        if method.stream_type is StreamType.UNARY:
            request = post(path, body, content_type="application/proto")
        else:
            request = post(
                path,
                envelope(body),
                content_type="application/connect+proto",
                connect_timeout_ms=_STREAM_MS,
            )
        status, got = ask(served.targets["service"], request)
        assert is_good_answer(status, got), (path, got[-500:])

    throw()
    served.check("service")


@pytest.mark.parametrize("what", ["empty", "json"])
def test_every_method_answers_nothing_and_noise_well(served: Served, what: str) -> None:
    bodies = {"": b"{}"} if what == "empty" else absurd_json()
    bad = {}
    for path, method in served.server.methods.items():
        for name, body in bodies.items():
            if method.stream_type is StreamType.UNARY:
                request = post(path, body, content_type="application/json")
            else:
                request = post(
                    path,
                    envelope(body),
                    content_type="application/connect+json",
                    connect_timeout_ms=_STREAM_MS,
                )
            status, got = ask(served.targets["service"], request)
            if not is_good_answer(status, got):
                bad[path, name] = (status, got[-300:])
    assert not bad, bad
